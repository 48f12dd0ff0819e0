"""`mitmsec ca trust` and `ca untrust` as an operator uses them, on stores of a tree of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from trust_house import FIREFOX, TrustHouse, said
from trust_stage import looks_the_same, new_root

from mitmsec.service import ca_journal, ca_work, trust_commands
from mitmsec.service.refusals import CannotRun

pytestmark = pytest.mark.root


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrustHouse:
    house = TrustHouse(tmp_path)
    monkeypatch.setattr(ca_work, "announce", lambda state: None)
    monkeypatch.setattr(trust_commands, "stores_here", house.stores)
    return house


def operations(house: TrustHouse) -> list[tuple[str, str]]:
    return [(seen.operation, seen.detail.partition(" ")[0]) for seen in ca_journal.left(house.state)]


@pytest.mark.checklist("K7")
def test_stores_trust_it_and_then_no_more_and_are_what_they_were(house: TrustHouse) -> None:
    with looks_the_same(house.tree):
        done = house.mitmsec("trust", "system", "firefox")
        assert done.exit_code == 0, said(done)
        assert house.trusting() == {"system": "trusted", "firefox": "trusted", "chromium": "not_trusted"}
        done = house.mitmsec("untrust")
        assert done.exit_code == 0, said(done)
        assert done.stdout.count("what it was before, byte for byte") == 2
        assert set(house.trusting().values()) == {"not_trusted"}
    assert not house.state.trust.exists()
    assert operations(house) == [
        ("trusted", "system"), ("trusted", "firefox"), ("untrusted", "firefox"), ("untrusted", "system"),
    ]  # fmt: skip


def test_twice_is_as_once_and_on_record_once(house: TrustHouse) -> None:
    for words in ("now", "already"):
        done = house.mitmsec("trust", "firefox")
        assert (done.exit_code, f"trusts it {words}" in done.stdout) == (0, True), said(done)
    assert operations(house) == [("trusted", "firefox")]
    for status in (0, 0):
        assert house.mitmsec("untrust", "firefox").exit_code == status
    assert operations(house) == [("trusted", "firefox"), ("untrusted", "firefox")]


def test_the_event_says_which_root_until_when_where_and_who(house: TrustHouse) -> None:
    house.mitmsec("trust", "firefox")
    (seen,) = ca_journal.left(house.state)
    root = house.shown()["root"]
    assert (seen.subject, seen.sha256, seen.not_after) == (root["subject"], root["sha256"], root["not_after"])
    assert seen.detail == f"firefox ({house.tree}/home/tester/{FIREFOX}, of tester)"
    assert seen.user


@pytest.mark.checklist("K8")
def test_without_a_name_the_policys_programs_say_which_stores(house: TrustHouse) -> None:
    done = house.mitmsec("trust", "--policy", house.policy("/usr/lib/firefox/*"))
    assert done.exit_code == 0, said(done)
    assert "firefox, for they" in done.stderr
    assert house.trusting() == {"system": "not_trusted", "firefox": "trusted", "chromium": "not_trusted"}


@pytest.mark.checklist("K8")
@pytest.mark.parametrize("text", ['user = ["ann"]', 'sha256 = ["' + "ab" * 32 + '"]'], ids=["user", "sha256"])
def test_where_that_cannot_be_told_nothing_is_done(house: TrustHouse, text: str) -> None:
    done = house.mitmsec("trust", "--policy", house.policy(text=text))
    assert done.exit_code == 2
    assert "'they'" in done.stderr
    assert "name the stores" in done.stderr
    assert set(house.trusting().values()) == {"not_trusted"}


def test_without_a_name_and_a_policy_it_asks_for_one(house: TrustHouse) -> None:
    done = house.mitmsec("trust", "--policy", str(house.folder / "none.toml"))
    assert (done.exit_code, "name the stores" in done.stderr) == (2, True)


def test_a_policy_that_selects_nobody_needs_no_store(house: TrustHouse) -> None:
    file = house.folder / "policy.toml"
    file.write_text("version = 1\n")
    done = house.mitmsec("trust", "--policy", str(file))
    assert (done.exit_code, "selects no application" in done.stderr) == (2, True)


def test_a_store_that_is_not_here_is_told_and_the_others_are_changed(house: TrustHouse) -> None:
    done = house.mitmsec("trust", "java", "firefox")
    assert (done.exit_code, "no store here of: java" in done.stderr) == (1, True)
    assert house.trusting()["firefox"] == "trusted"
    done = house.mitmsec("trust", "firefox", "--user", "nobody-here")
    assert (done.exit_code, "no store here of: firefox, in the homes of nobody-here" in done.stderr) == (1, True)


def test_only_one_users_homes(house: TrustHouse) -> None:
    assert house.mitmsec("trust", "firefox", "--user", "somebody").exit_code == 1
    assert house.mitmsec("trust", "firefox", "system", "--user", "tester").exit_code == 0
    assert house.trusting() == {"system": "trusted", "firefox": "trusted", "chromium": "not_trusted"}


def test_a_store_that_fails_is_as_it_was_and_the_others_are_changed(house: TrustHouse) -> None:
    (house.tree / f"home/tester/{FIREFOX}/cert9.db").write_bytes(b"no database at all")
    with looks_the_same(house.tree / "home"):
        done = house.mitmsec("trust", "firefox", "system")
    assert done.exit_code == 1
    assert "firefox" in done.stderr
    assert "certutil ended with status" in done.stderr
    assert operations(house) == [("trusted", "system")]
    assert house.trusting() == {"system": "trusted", "firefox": "unknown", "chromium": "not_trusted"}


def test_while_another_root_waits_both_are_trusted_and_go_together(house: TrustHouse) -> None:
    assert house.mitmsec("rotate").exit_code == 0
    with looks_the_same(house.tree):
        assert house.mitmsec("trust", "firefox").exit_code == 0
        told = house.rows("trust", "firefox", "--list")
        assert [row["state"] for row in told] == ["trusted", "trusted"]
        assert len({row["sha256"] for row in told}) == 2
        assert house.mitmsec("untrust").exit_code == 0


def test_what_others_have_done_meanwhile_is_told(house: TrustHouse) -> None:
    house.mitmsec("trust", "firefox")
    profile = house.tree / f"home/tester/{FIREFOX}"
    (label,) = [row for row in subprocess_lines("certutil", "-L", "-d", f"sql:{profile}") if "mitmsec-" in row]
    subprocess.run(["certutil", "-D", "-n", label.split()[0], "-d", f"sql:{profile}"], check=True)
    assert house.trusting()["firefox"] == "lost"
    done = house.mitmsec("untrust", "firefox")
    assert (done.exit_code, "others have changed the store since" in done.stdout) == (0, True)


def subprocess_lines(*argv: str) -> list[str]:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()


def test_without_a_ca_there_is_nothing_to_trust(tmp_path: Path, house: TrustHouse) -> None:
    for path in house.state.ca.iterdir():
        path.unlink()
    done = house.mitmsec("trust", "firefox")
    assert (done.exit_code, "ca init" in done.stderr) == (1, True)


def test_a_store_that_cannot_be_put_right_stays_on_the_list(house: TrustHouse) -> None:
    house.mitmsec("trust", "firefox", "system")
    (house.tree / f"home/tester/{FIREFOX}/cert9.db").write_bytes(b"no database any more")
    done = house.mitmsec("untrust")
    assert (done.exit_code, "firefox" in done.stderr) == (1, True)
    assert house.trusting() == {"firefox": "unknown", "system": "not_trusted", "chromium": "not_trusted"}
    assert operations(house)[-1] == ("untrusted", "system")


def test_what_takes_effect_with_ours_is_told(house: TrustHouse) -> None:
    (house.tree / "usr/local/share/ca-certificates/waiting.crt").write_text(new_root().pem)
    done = house.mitmsec("trust", "system")
    assert (done.exit_code, "which somebody had left undone" in done.stderr) == (0, True)


def test_a_ca_that_is_damaged_is_told(house: TrustHouse) -> None:
    (house.state.ca / "root.pem").write_text("no certificate")
    done = house.mitmsec("trust", "firefox")
    assert (done.exit_code, "root.pem" in done.stderr) == (1, True)


def test_what_could_not_be_recorded_yet_is_told_and_kept(house: TrustHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    def announce(state: object) -> None:
        raise CannotRun("the supervisor did not start", "read its log", 125)

    monkeypatch.setattr(ca_work, "announce", announce)
    done = house.mitmsec("trust", "firefox")
    assert (done.exit_code, "the supervisor did not start" in done.stderr) == (125, True)
    assert operations(house) == [("trusted", "firefox")]


def test_the_list_is_a_table_for_people(house: TrustHouse) -> None:
    house.mitmsec("trust", "firefox")
    lines = house.mitmsec("trust", "--list").stdout.splitlines()
    assert lines[0].split() == ["store", "user", "state", "until", "root", "place"]
    assert {"firefox", "system", "chromium"} <= {line.split(" ")[0] for line in lines[1:]}


def test_as_json_each_store_is_one_line(house: TrustHouse) -> None:
    (row,) = house.rows("trust", "firefox")
    assert (row["store"], row["user"], row["became"], row["others"]) == ("firefox", "tester", "added", [])
