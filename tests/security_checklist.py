"""The security checklist: its lines, the tests that are marked with them, and the document that shows both.

security_checklist.toml ──► lines ┐
@pytest.mark.checklist("U1") ─────┼─ a run with --checklist FILE ──► FILE, a table with each line's result
what each test came to ───────────┘
"""

from __future__ import annotations

import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parent
SOURCE = TESTS / "security_checklist.toml"
MARK = "checklist"
HEAD = """\
# Security checklist

Made by `make checklist`: each line is tested by what stands beside it. The lines come from the published studies of
interception products (NDSS 2016 and 2017, network appliances 2018), badssl's categories and the NSA's advisory of 2019.

"""


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    lines: Mapping[str, str]  # id → what must hold
    elsewhere: Mapping[str, str] = field(default_factory=dict)  # id → why it has no test


def sections() -> list[Section]:
    return [Section(**section) for section in tomllib.loads(SOURCE.read_text(encoding="utf-8"))["section"]]


def marks(folder: Path = TESTS) -> Iterator[tuple[str, str]]:
    """Each id that a test's source names, with `file::test`; of a table of parameters only the file is known."""
    for path in sorted(folder.rglob("test_*.py")):
        if MARK not in (text := path.read_text(encoding="utf-8")):
            continue
        tree = ast.parse(text)
        inside: set[ast.AST] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                calls = [call for decorator in node.decorator_list for call in _calls(decorator)]
                inside.update(calls)
                yield from ((identity, f"{path.name}::{node.name}") for call in calls for identity in _ids(call))
        yield from ((identity, path.name) for call in _calls(tree) if call not in inside for identity in _ids(call))


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == MARK
    ]


def _ids(call: ast.Call) -> list[str]:
    return [str(argument.value) for argument in call.args if isinstance(argument, ast.Constant)]


class Results:
    """What the marked tests of one run came to."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))

    def add(self, identity: str, test: str, outcome: str) -> None:
        self._of[identity][test].add(outcome)

    def result(self, identity: str) -> str:
        outcomes = {outcome for found in self._of[identity].values() for outcome in found}
        if not outcomes:
            return "**no test**"
        return next((f"**{bad}**" for bad in ("failed", "skipped") if bad in outcomes), "passed")

    def markdown(self) -> str:
        parts = [HEAD]
        for section in sections():
            parts.append(f"## {section.title}\n\n| | must hold | tests | result |\n|---|---|---|---|\n")
            for identity, what in section.lines.items():
                tests = "<br>".join(f"`{test}`" for test in sorted(self._of[identity]))
                why = section.elsewhere.get(identity)
                parts.append(f"| {identity} | {what} | {why or tests} | {'–' if why else self.result(identity)} |\n")
            parts.append("\n")
        return "".join(parts).rstrip("\n") + "\n"
