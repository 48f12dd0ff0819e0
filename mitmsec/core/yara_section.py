"""[inspector.yara]: the files of rules that it names, as words that change with what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

from mitmsec.core.host_lists import FILE
from mitmsec.core.toml_table import Table


class Files(Protocol):
    """What this section needs (mitmsec.core.policyfile.Context)."""

    @property
    def rule_file(self) -> Callable[[str, str], None]: ...
    def text_of(self, table: Table, file: str, *key: str | int) -> str | None: ...


def read_rules(table: Table, files: Files) -> list[str]:
    """A word for each file under `rules`: its name and its hash. Who compiles them is told their texts."""
    words = []
    for place, written in table.texts("rules"):
        name = written.removeprefix(FILE)
        text = files.text_of(table, name, "rules", place)
        if text is None:
            continue
        files.rule_file(name, text)
        words.append(f"{name} sha256:{hashlib.sha256(text.encode()).hexdigest()}")
    return words
