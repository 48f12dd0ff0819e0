"""Whole policies for three kinds of work, to start from: `mitmsec policy init --example NAME`."""

from __future__ import annotations

from importlib.resources import files

SUFFIX = ".toml"


def names() -> list[str]:
    return sorted(file.name.removesuffix(SUFFIX) for file in files(__name__).iterdir() if file.name.endswith(SUFFIX))


def text(name: str) -> str:
    """What `name`, one of `names`, holds."""
    return files(__name__).joinpath(name + SUFFIX).read_text(encoding="utf-8")
