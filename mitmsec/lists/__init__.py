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
_FOLDER = Path(__file__).parent  # importlib.resources costs a program a twelfth of its start


def shipped() -> Mapping[str, Callable[[], str]]:
    """Each by its name, as what reads its text."""
    return {file.stem: partial(_text, file) for file in sorted(_FOLDER.glob(f"*{SUFFIX}"))}


def head(text: str) -> str:
    """The comment that a list begins with: what it is for, its provenance, its date."""
    lines = text.splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:end]).strip()


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")
