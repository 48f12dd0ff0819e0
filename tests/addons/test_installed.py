"""Inspectors that are not ours: found by entry point or in a file, and what is said of those that are none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitmsec_addons import installed as by_entry_point
from mitmsec_addons.installed import NoInspector, in_file
from mitmsec_addons.registry import Names, build

MODULE = """
class Wordless:
    name = "wordless"
    def open(self, part): return None

class Wordy(Wordless):
    name = "wordy"
    def __init__(self, words):
        if not words: raise ValueError("wordy needs words")
        self.words = words

class Other:
    name = "other"
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package with inspectors."""
    (tmp_path / "foreign_inspectors.py").write_text(MODULE)
    facts = tmp_path / "foreign_inspectors-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-inspectors\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(
        "[mitmsec_addons]\nwordless = foreign_inspectors:Wordless\nwordy = foreign_inspectors:Wordy\n"
        "misnamed = foreign_inspectors:Wordless\nother = foreign_inspectors:Other\n"
        "broken = foreign_inspectors:Missing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    by_entry_point.installed.cache_clear()
    yield
    by_entry_point.installed.cache_clear()
    sys.modules.pop("foreign_inspectors", None)


@pytest.mark.usefixtures("package")
def test_an_installed_inspector_goes_by_the_name_of_its_entry_point() -> None:
    assert "wordy" in Names()
    assert [*Names(["mine"])] == sorted(Names(["mine"]))
    assert len(Names()) > 5
    assert build("wordless", ()).name == "wordless"
    assert build("wordy", ("a", "b")).words == ("a", "b")  # type: ignore[attr-defined]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "words", "why"),
    [
        ("wordless", ("a",), "wordless has no use for words"),
        ("wordy", (), "wordy needs words"),
        ("misnamed", (), 'makes no inspector of that name: it needs `name = "misnamed"`'),
        ("other", (), "makes no inspector of that name"),
        ("broken", (), "foreign_inspectors:Missing cannot be loaded: AttributeError"),
    ],
)
def test_one_that_cannot_be_made_says_why(name: str, words: tuple[str, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        build(name, words)


def test_a_file_gives_every_inspector_that_it_defines_and_nothing_that_it_imports(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from mitmsec_addons.iban import Iban\n" + MODULE)
    made = in_file(file)
    assert [*made] == ["wordless", "wordy"]
    assert made["wordy"](("x",)).name == "wordy"
    assert not [*tmp_path.glob("__pycache__")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x = 1\n", "has no inspector"),
        ("import nothing_of_that_name\n", "cannot be executed: ModuleNotFoundError"),
        ("raise SystemExit(0)\n", "cannot be executed: SystemExit"),
        ("def (\n", "cannot be executed: SyntaxError"),
    ],
)
def test_a_file_without_one_says_why(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(NoInspector, match=why):
        in_file(file)


def test_a_file_that_is_missing_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        in_file(tmp_path / "missing.py")
