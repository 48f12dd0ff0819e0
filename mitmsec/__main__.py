"""`mitmsec`, and `python -m mitmsec`."""

import signal


def main() -> None:
    """Run the command line. While it is loaded, Ctrl-C ends us as SIGTERM does: without a word, and no traceback."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mitmsec.cli import main

    signal.signal(signal.SIGINT, before)
    main()


if __name__ == "__main__":
    main()
