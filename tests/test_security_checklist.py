"""The checklist is whole: no line that has not been shown, no mark without a line, and the document says which test."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import security_checklist
from security_checklist import Results, marks, sections

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "security-checklist.md"
LINES = {identity: what for section in sections() for identity, what in section.lines.items()}
ELSEWHERE = {identity for section in sections() for identity in section.elsewhere}
SOURCE = """
@pytest.mark.checklist("U1", "U2")
def test_a(): ...

TABLE = [pytest.param(1, marks=pytest.mark.checklist("K1"))]

@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.checklist("C1"))])
async def test_b(x): ...
"""


def test_the_document_has_every_line_and_each_has_passed() -> None:
    rows = {cells[1]: cells[2:5] for cells in _rows(DOCUMENT.read_text(encoding="utf-8"))}
    assert {identity: row[0] for identity, row in rows.items()} == LINES
    assert {identity for identity, row in rows.items() if row[2] != "passed"} == ELSEWHERE
    assert all(row[1] for row in rows.values()), "tests, or where else"


def test_the_tests_that_the_document_names_are_there() -> None:
    files = {path.name: path for path in security_checklist.TESTS.rglob("test_*.py")}
    for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)`", DOCUMENT.read_text(encoding="utf-8")):
        assert f"def {name}(" in files[file].read_text(encoding="utf-8"), (
            f"{file}::{name}; `make checklist` writes anew"
        )


def test_each_mark_is_a_line_that_is_tested_here() -> None:
    assert {identity for identity, _ in marks()} <= LINES.keys() - ELSEWHERE


def test_marks_are_found_wherever_a_test_bears_one(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(SOURCE)
    (tmp_path / "test_other.py").write_text("def test_c(): ...")
    assert sorted(marks(tmp_path)) == [
        ("C1", "test_one.py::test_b"), ("K1", "test_one.py"), ("U1", "test_one.py::test_a"),
        ("U2", "test_one.py::test_a"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("outcomes", "result"),
    [((), "**no test**"), (("passed",), "passed"), (("passed", "skipped"), "**skipped**"),
     (("skipped", "failed", "passed"), "**failed**")],
)  # fmt: skip
def test_a_line_is_as_good_as_the_worst_of_its_tests(outcomes: tuple[str, ...], result: str) -> None:
    results = Results()
    for number, outcome in enumerate(outcomes):
        results.add("U1", f"test_{number}", outcome)
    assert results.result("U1") == result
    assert f"| U1 | {sections()[0].lines['U1']} |" in results.markdown()


FEW = """
import pytest
@pytest.fixture
def broken(): raise OSError
@pytest.mark.checklist("U1")
def test_good(): ...
@pytest.mark.checklist("U2")
def test_bad(): assert False
@pytest.mark.checklist("U3")
def test_never(broken): ...
"""


def test_the_document_comes_from_a_run(tmp_path: Path) -> None:
    """Of the suite's own plugin, in processes side by side."""
    shutil.copy(security_checklist.TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_few.py").write_text(FEW)
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\npythonpath = {security_checklist.TESTS}\nmarkers = checklist: lines\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--checklist", "list.md"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=110)
    rows = {cells[1]: cells[3:5] for cells in _rows((tmp_path / "list.md").read_text())}
    assert rows["U1"] == ["`test_few.py::test_good`", "passed"]
    assert rows["U2"] == ["`test_few.py::test_bad`", "**failed**"]
    assert rows["U3"] == ["`test_few.py::test_never`", "**failed**"]
    assert rows["U4"] == ["", "**no test**"]


def _rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.split("|")] for line in text.splitlines() if re.match(r"\| [A-Z]\d+ \|", line)
    ]
