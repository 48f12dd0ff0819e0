"""Groups of commands: a word that is none of theirs is answered with the near one, at every level alike."""

from __future__ import annotations

from difflib import get_close_matches
from typing import NoReturn

import click


class Group(click.Group):
    """As click's, but with what was probably meant, or with all that there is."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word, known = args[0], self.list_commands(ctx)
        if word == "help" and not ctx.resilient_parsing:
            self._tell_help(ctx, args[1:])
        if word not in known and not word.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"there is no command {word!r}{_meant(word, known)}")
        return super().resolve_command(ctx, args)

    def _tell_help(self, ctx: click.Context, words: list[str]) -> NoReturn:
        """As `WORDS --help`, for who writes `help WORDS`."""
        command: click.Command = self
        for word in words:
            inner = command.get_command(ctx, word) if isinstance(command, click.Group) else None
            if inner is None:
                ctx.fail(f"there is no command {word!r} to help with")
            command, ctx = inner, click.Context(inner, info_name=word, parent=ctx)
        click.echo(ctx.get_help())
        ctx.exit()


def _meant(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}"
