"""Where every lasting process of ours begins: `python -m mitmsec.service ROLE ARGUMENT…`.

One that has ended in order is gone at once: to take its modules apart first, as the interpreter would, costs a tenth of
a short run. One that fails tells so as ever.
"""

from __future__ import annotations

import os
import sys

from mitmsec.service.importing import imported

ROLES = ("broker", "console", "diverter", "gate", "recorder", "scanner", "signer", "supervisor", "worker")


def main() -> None:
    """Serve as the role that the first argument names; the others are its own."""
    if sys.argv[1:2] == [] or sys.argv[1] not in ROLES:
        sys.exit(f"python -m mitmsec.service: the first argument is one of {', '.join(ROLES)}")
    status = imported(f"mitmsec.service.{sys.argv.pop(1)}").main()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status or 0)


if __name__ == "__main__":
    main()
