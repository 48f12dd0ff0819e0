"""`python -m mitmsec` is `mitmsec`."""

from mitmsec.cli import main

if __name__ == "__main__":
    main()
