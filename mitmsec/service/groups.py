"""Groups of commands: a word that is none of theirs is answered with the near one, at every level alike."""

from __future__ import annotations

from difflib import get_close_matches

import click


class Group(click.Group):
    """As click's, but with what was probably meant, or with all that there is."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word, known = args[0], self.list_commands(ctx)
        if word not in known and not word.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"there is no command {word!r}{_meant(word, known)}")
        return super().resolve_command(ctx, args)


def _meant(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}"
