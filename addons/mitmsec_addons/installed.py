"""Inspectors that are not ours: of packages that are installed beside mitmsec, and of files that somebody names.

A package says so by an entry point; its name is the word that stands in a policy's `inspect`:

    [project.entry-points.mitmsec_addons]
    tickets = "our_inspectors.tickets:Tickets"
"""

from __future__ import annotations

import inspect
import runpy
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from mitmsec.core.inspection import AnyInspector

GROUP = "mitmsec_addons"

type Make = Callable[[tuple[str, ...]], AnyInspector]
"""Makes an inspector with the policy's words for it. Raises ValueError for words that it cannot use."""


class NoInspector(ValueError):
    """What was named is none; the text says why."""


@cache
def installed() -> dict[str, EntryPoint]:
    """By name. Nothing of theirs is loaded. Finding out takes milliseconds, so it is done once."""
    return {point.name: point for point in entry_points(group=GROUP)}


def made(name: str, words: tuple[str, ...]) -> AnyInspector:
    """The installed inspector `name`. Raises NoInspector, and ValueError for words that it cannot use."""
    point = installed()[name]
    try:
        loaded = point.load()
    except Exception as error:
        raise NoInspector(f"{point.value} cannot be loaded: {type(error).__name__}: {error}") from None
    return maker(loaded, name)(words)


def in_file(path: Path) -> dict[str, Make]:
    """The inspectors that a Python file defines, by name. The file is executed. Raises NoInspector and OSError."""
    path.open("rb").close()  # whether it can be read, told apart from what goes wrong in it
    try:
        names = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        raise NoInspector(f"{path} cannot be executed: {type(error).__name__}: {error}") from None
    here = names["__name__"]
    own = [value for value in names.values() if isinstance(value, type) and value.__module__ == here]
    found = {name: maker(value, name) for value in own if (name := _name_of(value))}
    if not found:
        raise NoInspector(f"{path} has no inspector: that is a class with a `name` and a method `open`")
    return found


def maker(made_by: Any, name: str) -> Make:
    """`made_by`, which may take words or nothing, as we call it. What it makes goes by `name`."""

    def make(words: tuple[str, ...]) -> AnyInspector:
        takes_words = bool(inspect.signature(made_by).parameters)
        if words and not takes_words:
            raise ValueError(f"{name} has no use for words")
        inspector: AnyInspector = made_by(words) if takes_words else made_by()
        if getattr(inspector, "name", None) != name or not _can_begin(inspector):
            raise NoInspector(f'what makes {name} makes no inspector of that name: it needs `name = "{name}"`, `open`')
        return inspector

    return make


def _name_of(value: type) -> str:
    """Empty where it is no inspector."""
    name = getattr(value, "name", None)
    return name if isinstance(name, str) and _can_begin(value) else ""


def _can_begin(value: object) -> bool:
    """`open`, or `begin` where it has to wait."""
    return callable(getattr(value, "open", None)) or callable(getattr(value, "begin", None))
