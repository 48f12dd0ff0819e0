"""The command line. Each group of commands stands in its own module of `mitmsec.service` and is imported when used."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from typing import Any, NoReturn

import click

from mitmsec import __version__
from mitmsec.service.groups import Group
from mitmsec.service.importing import imported
from mitmsec.service.stdout import Unwritable, told_apart

EXIT_MACHINE, EXIT_FAULT = 3, 125
FULL = (errno.ENOSPC, errno.EDQUOT)
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_NO_READER = 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else EXIT_MACHINE

COMMANDS = {
    "apps": "mitmsec.service.apps_command:apps",
    "audit": "mitmsec.service.audit_commands:audit",
    "ca": "mitmsec.service.ca_commands:ca",
    "clean": "mitmsec.service.clean_command:clean",
    "demo": "mitmsec.service.demo_command:demo",
    "doctor": "mitmsec.service.doctor_command:doctor",
    "inspect": "mitmsec.service.inspect_command:inspect",
    "off": "mitmsec.service.service_commands:off",
    "on": "mitmsec.service.service_commands:on",
    "policy": "mitmsec.service.policy_commands:policy",
    "quarantine": "mitmsec.service.quarantine_command:quarantine",
    "reload": "mitmsec.service.service_commands:reload_policy",
    "run": "mitmsec.service.run_command:run",
    "start": "mitmsec.service.service_commands:start",
    "status": "mitmsec.service.service_commands:status",
    "stop": "mitmsec.service.service_commands:stop",
}


class Commands(Group):
    """A group that imports a command only when it is asked for: `run` starts without the auditor's libraries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(imported(module), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """As click does, but a socket of ours that breaks is no reader that has gone, and Ctrl-C no answer."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise Broken(str(error)) from error
            raise


class Interrupted(Exception):
    """By Ctrl-C, while something was done."""


class Broken(Exception):
    """Something of ours that is written to, other than stdout, is broken."""


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mitmsec")
def cli() -> None:
    """Pick applications; see, govern and prove what they send.

    Their connections are diverted in the kernel to a local gate, where a policy decides: decrypt, bypass, block or
    capture. What was decided and seen goes to a log that shows every later change.
    """


def main() -> None:
    """Run the command line: errors to stderr in one line, never a traceback unless --debug asks for it."""
    debug = "--debug" in sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
    try:
        with told_apart():
            cli.main(prog_name="mitmsec")
    except Unwritable as error:
        if error.reader_has_gone:
            sys.exit(EXIT_NO_READER)
        _end(f"mitmsec: {error}\n  what was written is not complete: make room, or send it elsewhere", EXIT_MACHINE)
    except Interrupted:
        _end("mitmsec: interrupted", EXIT_INTERRUPTED)
    except Exception as error:
        if debug:
            traceback.print_exc()
            sys.exit(EXIT_FAULT)
        if isinstance(error, OSError) and error.errno in FULL:
            file = f": {error.filename}" if error.filename else ""
            _end(f"mitmsec: {error.strerror}{file}\n  make room, then order it once more", EXIT_MACHINE)
        _end(f"mitmsec: {error}\n  this is a fault of mitmsec; --debug shows where", EXIT_FAULT)


def _end(words: str, status: int) -> NoReturn:
    """Say it and end; where stderr's reader has gone too, that is how we end."""
    try:
        click.echo(words, err=True)
    except OSError as error:
        status = EXIT_NO_READER if error.errno == errno.EPIPE else status
    sys.exit(status)


if __name__ == "__main__":
    main()
