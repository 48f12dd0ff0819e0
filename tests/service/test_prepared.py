"""What inspectors have compiled is compiled once, and only what is ours is ever run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from yara_stage import EVIL

from mitmsec.core.policy import DEFAULT_POLICY, Policy
from mitmsec.service import prepared
from mitmsec.service.prepared import KEPT_LIMIT, kept_or_made, prepared_for
from mitmsec.service.state import State
from mitmsec_addons.yara_rules import RuleFile, RuleSet, RulesRefused

COMPILED = b"compiled" * 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "compiled"
    place.mkdir(mode=0o700)
    return place


class Compiling:
    """Counts how often it had to be."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> bytes:
        self.count += 1
        return COMPILED


def test_it_is_made_once_and_then_kept(folder: Path) -> None:
    make = Compiling()
    assert {kept_or_made(folder, "secrets", "1", make) for _ in range(3)} == {COMPILED}
    assert make.count == 1
    kept_or_made(folder, "secrets", "2", make)
    assert make.count == 2
    assert sorted(entry.name for entry in folder.iterdir()) == ["secrets-1", "secrets-2"]
    assert (folder / "secrets-1").stat().st_mode & 0o777 == 0o600


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _others_write(file: Path) -> None:
    file.chmod(0o620)


def _others_file(file: Path) -> None:
    os.chown(file, 65534, 65534)


def _link(file: Path) -> None:
    elsewhere = file.parent.parent / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.root
@pytest.mark.parametrize("spoil", [_cut, _others_write, _others_file, _link, _pipe])
def test_what_may_not_be_ours_is_made_anew(folder: Path, spoil: object) -> None:
    make = Compiling()
    kept_or_made(folder, "secrets", "1", make)
    spoil(folder / "secrets-1")  # type: ignore[operator]
    assert [kept_or_made(folder, "secrets", "1", make) for _ in range(2)] == [COMPILED] * 2
    assert make.count == 2, "it was not read, and what was put in its place is"


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o770, 0o777])
def test_in_a_folder_that_others_may_write_to_nothing_is_kept(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    make = Compiling()
    assert [kept_or_made(folder, "secrets", "1", make) for _ in range(2)] == [COMPILED] * 2
    assert (make.count, list(folder.iterdir())) == (2, [])


def test_without_a_folder_it_is_made_each_time(tmp_path: Path) -> None:
    make = Compiling()
    assert [kept_or_made(tmp_path / "none", "secrets", "1", make) for _ in range(2)] == [COMPILED] * 2
    assert make.count == 2


def test_what_one_left_that_was_killed_while_it_wrote_goes_and_what_another_writes_now_stays(folder: Path) -> None:
    for name in ("writing", "writing-0", "writing-1"):
        (folder / name).write_bytes(b"half")
    for name in ("writing", "writing-0"):
        os.utime(folder / name, (1, 1))
    kept_or_made(folder, "secrets", "1", Compiling())
    assert sorted(entry.name for entry in folder.iterdir()) == ["secrets-1", "writing-1"]


def test_of_two_that_write_at_a_time_each_keeps_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is about to give its file the name when the second has written its own, and goes on first."""
    rename, waiting = os.rename, list[Callable[[], None]]()

    def interleaved(*names: Any, **folders: Any) -> None:
        if not waiting:
            waiting.append(partial(rename, *names, **folders))
            kept_or_made(folder, "secrets", "2", lambda: b"the second's")
        else:
            waiting[0]()
            rename(*names, **folders)

    monkeypatch.setattr(os, "rename", interleaved)
    kept_or_made(folder, "secrets", "1", lambda: b"the first's")
    kept = {key: kept_or_made(folder, "secrets", key, lambda: b"made anew") for key in ("1", "2")}
    assert kept == {"1": b"the first's", "2": b"the second's"}


def test_what_was_made_for_another_key_is_made_anew(folder: Path) -> None:
    kept_or_made(folder, "secrets", "1", Compiling())
    (folder / "secrets-1").rename(folder / "secrets-2")
    assert kept_or_made(folder, "secrets", "2", lambda: b"its own") == b"its own"


def test_old_ones_go(folder: Path) -> None:
    for number in range(KEPT_LIMIT + 2):
        kept_or_made(folder, "secrets", f"{number}", Compiling())
        os.utime(folder / f"secrets-{number}", ns=(number, number))
    assert len(list(folder.iterdir())) == KEPT_LIMIT
    assert not (folder / "secrets-0").exists()


def test_a_policy_without_such_an_inspector_costs_nothing(tmp_path: Path) -> None:
    assert prepared_for(DEFAULT_POLICY, State(tmp_path / "state")) == {}
    assert list(tmp_path.iterdir()) == []
    loads = "import sys, mitmsec.service.prepared; print(not {'hyperscan', 'yara_x'}.isdisjoint(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", loads], text=True) == "False\n"


@pytest.mark.root
def test_another_processor_another_hyperscan_and_other_rules_compile_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, policy = State(tmp_path / "state"), Policy(inspectors=(("secrets", ()),))
    keys = _keys(state)
    monkeypatch.setattr(prepared, "prepare", lambda name: COMPILED)
    assert prepared_for(policy, state) == prepared_for(policy, state) == {"secrets": COMPILED}
    assert next(keys) == 1
    with monkeypatch.context() as other:
        other.setattr(prepared, "_features", lambda: ["flags : other"])
        prepared_for(policy, state)
    assert next(keys) == 2
    with monkeypatch.context() as other:
        other.setattr(prepared, "_version", lambda package: "9.9")
        prepared_for(policy, state)
    assert next(keys) == 3
    monkeypatch.setattr(prepared, "PREPARED", {"secrets": ("secrets.py",)})
    prepared_for(policy, state)
    assert next(keys) == 4


@pytest.mark.root
def test_rules_of_yara_are_compiled_once_and_anew_when_one_is_changed(tmp_path: Path) -> None:
    state, policy = State(tmp_path / "state"), Policy(inspectors=(("yara", ("own.yar",)),))
    keys, rules = _keys(state), [RuleFile(name="own.yar", text=EVIL)]
    first = prepared_for(policy, state, rules)
    assert prepared_for(policy, state, rules) == first
    assert next(keys) == 1
    assert len(RuleSet(first["yara"]).scan(b"evil-bytes").hits) == 1
    prepared_for(policy, state, [RuleFile(name="own.yar", text=EVIL + "// changed")])
    assert next(keys) == 2
    with pytest.raises(RulesRefused):
        prepared_for(policy, state, [RuleFile(name="own.yar", text="rule")])
    assert next(keys) == 2


def _keys(state: State) -> Iterator[int]:
    while True:
        yield len(list(state.compiled.iterdir()))
