"""`mitmsec quarantine`: keys, the list, and what is not opened."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from mitmsec.cli import cli
from mitmsec.core.quarantine import About, Recipient, about_line, in_pieces, parse_recipient
from mitmsec.service import quarantine_command
from mitmsec.service.state import State
from mitmsec_certs.quarantine_box import Sealing

ITEM = "flow1-0123abcd"
ABOUT = About(
    flow="flow1", rule="r", detector="secrets", summary="a token", location="request.body+5", host="h", method="POST",
    url="https://h/", content_type="", codings="", name="", sent=True,
)  # fmt: skip
CONTENT = b"the content\n" * 20_000


def told(*words: str) -> Result:
    return CliRunner().invoke(cli, ["quarantine", *words])


class House:
    """A state with one item, sealed to alice and bob; carol has a key too."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, State(folder / "state")
        self.recorded: list[tuple[str, tuple[Recipient, ...]]] = []
        self.state.quarantine.mkdir(parents=True)
        people = []
        for name in ("alice", "bob", "carol"):
            done = told("keys", name, "-o", str(folder / f"{name}.pem"))
            assert done.exit_code == 0, done.output
            people.append(parse_recipient(done.stdout.strip()))
        self.people = people
        self.file = self.state.quarantine / ITEM
        self.file.write_bytes(self.sealed(people[:2]))

    def sealed(self, people: Sequence[Recipient], about: About = ABOUT) -> bytes:
        one = Sealing(people).begin(ITEM, len(CONTENT), is_whole=False)
        pieces = in_pieces([about_line(about), CONTENT])
        return one.preamble + b"".join(one.sealed(piece, is_last=is_last) for piece, is_last in pieces)

    def record(self, _: State, item: str, people: tuple[Recipient, ...]) -> None:
        self.recorded.append((item, people))

    def release(self, *names: str, item: str = ITEM, words: tuple[str, ...] = ()) -> Result:
        keys = [word for name in names for word in ("--key", str(self.folder / name))]
        return told("release", item, *keys, "-o", str(self.folder / "out"), "--state", str(self.state.folder), *words)

    def asked(self, *words: str) -> Result:
        return told(*words, "--state", str(self.state.folder))


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    made = House(tmp_path)
    monkeypatch.setattr(quarantine_command, "_record", made.record)
    return made


def test_a_pair_of_keys_is_a_file_of_ones_own_and_a_line_for_the_policy(tmp_path: Path) -> None:
    file = tmp_path / "alice.pem"
    done = told("keys", "alice", "-o", str(file), "--json")
    assert parse_recipient(json.loads(done.stdout)["recipient"]).name == "alice"
    assert file.stat().st_mode & 0o777 == 0o600
    again = told("keys", "alice", "-o", str(file))
    assert (again.exit_code, "is there already" in again.stderr) == (2, True)
    assert told("keys", "a\nb", "-o", str(tmp_path / "b")).exit_code == 2
    assert told("keys", "bob", "-o", str(tmp_path / "none" / "b")).exit_code == 2


def test_the_list_says_what_can_be_read_without_keys(house: House) -> None:
    (house.state.quarantine / "flow1-00000000.part").touch()
    (listed,) = map(json.loads, house.asked("list", "--json").stdout.splitlines())
    assert (listed["item"], listed["content_bytes"], listed["is_whole"], listed["sealed_for"]) == (
        ITEM, len(CONTENT), False, ["alice", "bob"],
    )  # fmt: skip
    table = house.asked("list").stdout
    assert ITEM in table
    assert "240000, not all of it" in table
    shown = house.asked("show", ITEM)
    assert "alice, bob" in shown.stdout
    assert "audit show" in shown.stdout
    assert json.loads(house.asked("show", ITEM, "--json").stdout) == listed
    assert house.asked("show", "flow1-00000000").exit_code == 1
    house.file.unlink()
    assert house.asked("list").stdout == "nothing lies under quarantine\n"
    assert told("list", "--json", "--state", str(house.folder / "none")).stdout == ""


@pytest.mark.root
def test_two_people_open_it_and_that_is_on_record_before(house: House) -> None:
    done = house.release("bob.pem", "alice.pem")
    assert done.exit_code == 0, done.output
    assert (house.folder / "out").read_bytes() == CONTENT
    assert (house.folder / "out").stat().st_mode & 0o777 == 0o600
    assert house.recorded == [(ITEM, tuple(house.people[:2]))]
    assert "request.body+5" in done.stdout
    assert "this may not be all of what was found" in done.stderr
    assert house.file.exists()
    again = house.release("bob.pem", "alice.pem")
    assert (again.exit_code, "is there already" in again.stderr) == (2, True)
    assert len(house.recorded) == 1, "what is not written is not on record as released"
    assert "opened by     alice and bob" in done.stdout
    assert f"written to    {house.folder / 'out'}" in done.stdout


def test_an_item_is_known_by_how_its_name_begins_where_no_other_does(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    assert ITEM in house.asked("list").stdout
    assert json.loads(house.asked("show", "flow", "--json").stdout)["item"] == ITEM
    house.file.with_name("flow1-ffffffff").write_bytes(b"")
    both = house.asked("show", "flow1")
    assert (both.exit_code, "2 items begin with flow1" in both.stderr) == (2, True)
    assert "there is no item" in house.asked("show", "").stderr


@pytest.mark.root
@pytest.mark.parametrize(
    ("names", "status", "why"),
    [
        (("alice.pem",), 2, "two people's keys are wanted"),
        (("alice.pem", "alice.pem"), 1, "the keys of two of alice, bob are wanted; these are those of alice"),
        (("alice.pem", "carol.pem"), 1, "the keys of two of alice, bob are wanted; these are those of alice"),
        (("alice.pem", "none.pem"), 2, "none.pem cannot be read"),
        (("alice.pem", "state"), 2, "state cannot be read"),
        (("alice.pem", "text"), 2, "text: no private key"),
        (("alice.pem", os.devnull), 2, "is no file"),
    ],
)
def test_nobody_opens_it_otherwise(house: House, names: tuple[str, ...], status: int, why: str) -> None:
    (house.folder / "text").write_text("no key")
    done = house.release(*names)
    assert (done.exit_code, why in done.stderr) == (status, True), done.output
    assert not (house.folder / "out").exists()
    assert house.recorded == []


@pytest.mark.root
def test_what_was_changed_is_not_written(house: House) -> None:
    content = house.file.read_bytes()
    house.file.write_bytes(content[:-1])
    done = house.release("alice.pem", "bob.pem")
    assert (done.exit_code, "not what was sealed" in done.stderr) == (1, True)
    assert not (house.folder / "out").exists()
    assert house.recorded == []
    house.file.write_bytes(b"x" + content)
    assert house.release("alice.pem", "bob.pem").exit_code == 1
    (shown,) = map(json.loads, house.asked("list", "--json").stdout.splitlines())
    assert shown["why"] == "it is no content under quarantine, or of another version"
    assert house.asked("show", ITEM).exit_code == 1
    house.file.write_bytes(content)
    house.file.rename(house.file.with_name("flow1-ffffffff"))
    assert "it says that it is" in house.asked("list").stdout
    house.recorded.clear()
    done = house.release("alice.pem", "bob.pem", item="flow1-ffffffff")
    assert (done.exit_code, f"it says that it is {ITEM}" in done.stderr, house.recorded) == (1, True, [])
    assert house.release("alice.pem", "bob.pem", item="../x").exit_code == 1


@pytest.mark.root
def test_what_a_worker_that_was_taken_over_says_of_people_and_item_is_not_put_on_record(house: House) -> None:
    alice, bob, _ = house.people
    for twice in ((alice, replace(alice, name="bob")), (alice, replace(bob, name="alice"))):
        house.file.write_bytes(house.sealed(twice))
        done = house.release("alice.pem", "bob.pem")
        assert (done.exit_code, "somebody is in it twice" in done.stderr) == (1, True)
    house.file.write_bytes(house.sealed([alice, bob], replace(ABOUT, flow="flow2")))
    done = house.release("alice.pem", "bob.pem")
    assert (done.exit_code, "it says that it is of another connection" in done.stderr) == (1, True)
    honest = house.sealed([alice, bob])
    for header, false in ((b'"name":"bob"', b'"name":"eve"'), (b'"content_bytes":240000', b'"content_bytes":240001')):
        house.file.write_bytes(honest.replace(header, false))
        done = house.release("alice.pem", "bob.pem")
        assert (done.exit_code, "not what was sealed" in done.stderr) == (1, True)
    assert house.recorded == []
    assert not (house.folder / "out").exists()
