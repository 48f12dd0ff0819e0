"""The command line. Each group of commands stands in its own module of `mitmsec.service` and is imported when used."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterable
from difflib import get_close_matches

import click

from mitmsec import __version__

COMMANDS = {
    "audit": "mitmsec.service.audit_commands:audit",
    "clean": "mitmsec.service.clean_command:clean",
    "demo": "mitmsec.service.demo_command:demo",
    "doctor": "mitmsec.service.doctor_command:doctor",
    "policy": "mitmsec.service.policy_commands:policy",
    "run": "mitmsec.service.run_command:run",
}


class Commands(click.Group):
    """A group that imports a command only when it is asked for: `run` starts without the auditor's libraries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but with what was probably meant: click itself knows only commands that are imported."""
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"there is no command {args[0]!r}{_meant(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


def _meant(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}"


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
        cli.main(prog_name="mitmsec")
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            click.echo(f"mitmsec: {error}\n  this is a fault of mitmsec; --debug shows where", err=True)
        sys.exit(125)


if __name__ == "__main__":
    main()
