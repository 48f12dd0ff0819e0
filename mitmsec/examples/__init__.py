"""Whole policies for three kinds of work, to start from: `mitmsec policy init --example NAME`."""

from __future__ import annotations

from pathlib import Path

SUFFIX = ".toml"
_FOLDER = Path(__file__).parent


def names() -> list[str]:
    return sorted(file.stem for file in _FOLDER.glob(f"*{SUFFIX}"))


def text(name: str) -> str:
    """What `name`, one of `names`, holds."""
    return (_FOLDER / f"{name}{SUFFIX}").read_text(encoding="utf-8")
