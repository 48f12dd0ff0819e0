"""`mitmsec ca rotate` as an operator uses it: rehearsed from one end to the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from ca_house import CaHouse

from mitmsec.service import ca_journal, ca_work

pytestmark = pytest.mark.root


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaHouse:
    monkeypatch.setattr(ca_work, "announce", lambda state: None)
    return CaHouse(tmp_path)


@pytest.fixture
def own(house: CaHouse) -> CaHouse:
    """One with a CA of its own."""
    assert house.with_word("init", "--permit", "corp.example").exit_code == 0
    return house


def operations(house: CaHouse) -> list[str]:
    return [seen.operation for seen in ca_journal.left(house.state)]


@pytest.mark.checklist("K3")
def test_the_issuing_ca_is_renewed_under_the_same_root_so_nobodys_trust_changes(own: CaHouse) -> None:
    before, key = own.shown(), own.issuing_key()
    done = own.with_word("rotate")
    assert done.exit_code == 0, done.output
    after = own.shown()
    assert after["root"] == before["root"]
    assert after["trusted"] == before["trusted"]
    assert after["issuing"]["sha256"] != before["issuing"]["sha256"]
    assert after["issuing"]["permitted"] == ["corp.example"]
    assert own.issuing_key() != key
    assert operations(own) == ["initialised", "issuing_rotated"]


@pytest.mark.checklist("K3")
def test_a_new_root_is_trusted_before_it_serves_and_the_old_one_after(own: CaHouse) -> None:
    old = own.shown()
    done = own.with_word("rotate", "--new-root", "--permit", "corp.example", "--permit", "b.example", root_file="2.p12")
    assert done.exit_code == 0, done.output
    assert str(own.folder / "2.p12") in done.stdout
    overlap = own.shown()
    assert overlap["issuing"] == old["issuing"]
    assert overlap["trusted"] == [old["root"]["sha256"], overlap["next"]["root"]["sha256"]]
    assert "next root" in own.mitmsec("show").stdout
    assert own.mitmsec("rotate", "--take-over").exit_code == 0
    after = own.shown()
    assert after["root"] == overlap["next"]["root"]
    assert after["issuing"]["permitted"] == ["corp.example", "b.example"]
    assert after["next"] is None
    assert after["trusted"] == [after["root"]["sha256"], old["root"]["sha256"]]
    assert operations(own) == ["initialised", "root_rotation_begun", "taken_over"]


def test_without_a_word_the_limits_stay_what_they_are(own: CaHouse) -> None:
    own.with_word("rotate", "--new-root", root_file="2.p12")
    assert own.shown()["next"]["issuing"]["permitted"] == ["corp.example"]


def test_an_automatic_ca_waits_too_for_its_root_is_another(house: CaHouse) -> None:
    house.make_automatic()
    before = house.shown()
    done = house.mitmsec("rotate")
    assert done.exit_code == 0, done.output
    assert "--take-over" in done.stderr
    assert house.shown()["root"] == before["root"]
    assert house.mitmsec("rotate", "--take-over").exit_code == 0
    after = house.shown()
    assert after["kind"] == "automatic"
    assert after["root"] != before["root"]


def test_another_passphrase_or_another_root_changes_nothing(own: CaHouse, tmp_path: Path) -> None:
    before = own.shown()
    own.write_word("another passphrase")
    done = own.with_word("rotate")
    assert done.exit_code == 1
    assert "cannot be opened" in done.stderr
    (tmp_path / "elsewhere").mkdir()
    stranger = CaHouse(tmp_path / "elsewhere")
    assert stranger.with_word("init").exit_code == 0
    own.write_word("correct horse battery")
    done = own.with_word("rotate", root_file="elsewhere/root.p12")
    assert done.exit_code == 1
    assert "another root" in done.stderr
    assert own.shown() == before
    assert operations(own) == ["initialised"]


def test_a_roots_file_that_is_not_here_is_asked_for(own: CaHouse) -> None:
    (own.folder / "root.p12").unlink()
    done = own.mitmsec("rotate", "--passphrase-file", str(own.word))
    assert done.exit_code == 2
    assert "bring the root's file" in done.stderr
    assert str(own.folder / "root.p12") in done.stderr


@pytest.mark.parametrize("command", ["--new-root", "--csr"])
def test_what_waited_and_is_replaced_by_word_does_not_go_without_one(own: CaHouse, command: str) -> None:
    """Its root may be in trust stores already."""
    first = own.with_word("rotate", "--new-root", root_file="2.p12")
    assert "waits no more" not in first.stderr
    waited = own.shown()["next"]["root"]["subject"]
    if command == "--csr":
        done = own.mitmsec("init", "--csr", str(own.folder / "csr.pem"))
    else:
        done = own.with_word("rotate", "--new-root", root_file="3.p12")
    assert done.exit_code == 0, done.output
    assert f"{waited} waits no more" in done.stderr
    assert "ca untrust" in done.stderr
    if command == "--new-root":
        assert "waits no more" not in own.mitmsec("rotate", "--take-over").stderr


def test_what_waits_is_not_thrown_away_by_the_way(own: CaHouse) -> None:
    own.with_word("rotate", "--new-root", root_file="2.p12")
    waiting = own.shown()["next"]
    done = own.with_word("rotate")
    assert done.exit_code == 1
    assert "--take-over" in done.stderr
    assert own.shown()["next"] == waiting


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--take-over", "--new-root"], 2, "no other option"),
        (["--permit", "a.example"], 2, "need --new-root"),
        (["--take-over"], 1, "no CA waits"),
    ],
)
def test_wrong_usage_is_told(own: CaHouse, words: list[str], status: int, said: str) -> None:
    done = own.mitmsec("rotate", *words)
    assert done.exit_code == status
    assert said in done.stderr


def test_without_a_ca_there_is_nothing_to_rotate(house: CaHouse) -> None:
    done = house.mitmsec("rotate")
    assert done.exit_code == 1
    assert "ca init" in done.stderr
