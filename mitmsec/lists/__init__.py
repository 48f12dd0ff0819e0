"""The lists that are shipped, for a rule's `category`: one file each, to be read by people, with its head first.

# What it is for.
# Provenance: …
# Date: 2026-11-30
#
bank.example
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable

SUFFIX = ".txt"


def shipped() -> Mapping[str, Callable[[], str]]:
    """Each by its name, as what reads its text."""
    found = {file.name.removesuffix(SUFFIX): file for file in files(__name__).iterdir() if file.name.endswith(SUFFIX)}
    return {name: partial(_text, found[name]) for name in sorted(found)}


def head(text: str) -> str:
    """The comment that a list begins with: what it is for, its provenance, its date."""
    lines = text.splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:end]).strip()


def _text(file: Traversable) -> str:
    return file.read_text(encoding="utf-8")
