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
from pathlib import Path

SUFFIX = ".txt"
# importlib.resources costs a program a twelfth of its start. Read at once, for they are ours: who asks for one may be
# acting as somebody who cannot read our folder.
_TEXTS = {file.stem: file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parent.glob(f"*{SUFFIX}"))}


def shipped() -> Mapping[str, Callable[[], str]]:
    """Each by its name, as what reads its text."""
    return {name: partial(_TEXTS.__getitem__, name) for name in _TEXTS}


def head(text: str) -> str:
    """The comment that a list begins with: what it is for, its provenance, its date."""
    lines = text.splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:end]).strip()
