"""`mitmsec ca init` as an operator uses it, up to where a supervisor takes the CA up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ca_house import WORD, CaHouse
from click.testing import Result

from mitmsec.service import ca_init_command, ca_work
from mitmsec.service.refusals import CannotRun

pytestmark = pytest.mark.root


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaHouse:
    monkeypatch.setattr(ca_work, "announce", lambda state: None)
    return CaHouse(tmp_path)


def test_init_makes_a_ca_prints_where_the_root_went_and_says_to_take_it_away(house: CaHouse) -> None:
    done = house.with_word("init", "--permit", "corp.example", "--exclude", "hr.corp.example")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"the root's key is in {house.folder / 'root.p12'}, encrypted\n"
    assert "take that file off this machine" in done.stderr
    assert WORD not in done.output
    assert house.shown()["kind"] == "own"
    words = house.mitmsec("show").stdout
    assert "corp.example, but not for hr.corp.example" in words
    assert "is still there" in words


def test_without_limits_init_says_that_there_are_none(house: CaHouse) -> None:
    assert "may speak for every name" in house.with_word("init").stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--permit", "*.corp.example"], "stands for all below it"),
        (["--exclude", "10.0.0.1/8"], "no network"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_made(house: CaHouse, words: list[str], said: str) -> None:
    done = house.with_word("init", *words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not house.state.folder.exists()


def test_a_short_passphrase_is_refused(house: CaHouse) -> None:
    house.write_word("short")
    done = house.with_word("init")
    assert done.exit_code == 2
    assert "12 characters" in done.stderr


def test_no_file_is_overwritten(house: CaHouse) -> None:
    (house.folder / "root.p12").write_text("precious")
    done = house.with_word("init")
    assert done.exit_code == 2
    assert "exists already" in done.stderr
    assert not house.state.folder.exists()


def test_a_ca_that_somebody_made_is_not_replaced_by_a_second_word(house: CaHouse) -> None:
    house.with_word("init")
    before = house.shown()
    done = house.with_word("init", root_file="other.p12")
    assert done.exit_code == 1
    assert "ca rotate" in done.stderr
    assert house.shown() == before
    (house.state.ca / "issuing.pem").write_text("damaged")
    assert house.with_word("init", root_file="other.p12").exit_code == 1


def test_an_automatic_ca_is_replaced(house: CaHouse) -> None:
    house.make_automatic()
    before = house.shown()
    assert house.with_word("init").exit_code == 0
    after = house.shown()
    assert (before["kind"], after["kind"]) == ("automatic", "own")
    assert after["trusted"] == [after["root"]["sha256"], before["root"]["sha256"]]


def test_a_supervisor_that_does_not_take_it_up_is_told(house: CaHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(state: object) -> None:
        raise CannotRun("the supervisor did not take the CA up", "it goes on record with the next start", 125)

    monkeypatch.setattr(ca_work, "announce", fails)
    done = house.with_word("init")
    assert done.exit_code == 125
    assert "with the next start" in done.stderr
    assert "what was ordered is done" in done.stderr
    assert str(house.folder / "root.p12") in done.stdout
    assert house.shown()["kind"] == "own"


def test_of_two_who_make_a_ca_at_once_the_second_does_not_replace_the_firsts(
    house: CaHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has made it while our passphrase was typed."""
    done: list[Result] = []
    asked = ca_init_command.passphrase

    def typed(what: str, *words: Any, **more: Any) -> str:
        monkeypatch.setattr(ca_init_command, "passphrase", asked)
        done.append(house.with_word("init", root_file="first.p12"))
        return asked(what, *words, **more)

    monkeypatch.setattr(ca_init_command, "passphrase", typed)
    done.append(house.with_word("init", root_file="second.p12"))
    assert [one.exit_code for one in done] == [0, 1]
    assert "there is a CA already" in done[1].stderr
    assert house.shown()["root_file"].endswith("first.p12")
    assert not (house.folder / "second.p12").exists()


def test_a_request_takes_nothing_that_belongs_to_a_root_and_show_says_that_it_waits(house: CaHouse) -> None:
    house.make_automatic()
    request = str(house.folder / "our.csr")
    assert house.with_word("init", "--csr", request).exit_code == 2
    assert house.mitmsec("init", "--csr", request, "--root-file", "root.p12").exit_code == 2
    assert "waits for its answer" not in house.mitmsec("show").stdout
    assert house.mitmsec("init", "--csr", request).exit_code == 0
    assert "waits for its answer" in house.mitmsec("show").stdout
    assert house.shown()["asks"] is True
