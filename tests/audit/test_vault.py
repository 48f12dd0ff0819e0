"""Content beside the log: kept, found, and so erased that no file has it any more."""

from __future__ import annotations

import secrets
import sqlite3
import stat
from collections.abc import Iterator, Set
from pathlib import Path

import pytest
from msgspec.structs import replace

from mitmsec.audit import vault as vaulting
from mitmsec.audit.vault import FILE_NAME, Content, Vault, VaultUnwritable, Wanted, about
from mitmsec.core.unmasking import Person, Unmasking
from mitmsec.seal import open_content_sealer

ORIGIN = "mitmsec.log/test"
ASKED = Unmasking(id="r1", event="e1", reason="why", by=Person(name="alice", uid=1), at_s=10)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    made = Vault(tmp_path)
    yield made
    made.close()


def content(event: str, *, size_bytes: int = 40, **words: object) -> Content:
    told = {
        "id": f"c-{event}", "event": event, "kind": "finding", "connection": "flow-1", "user": "joe", "uid": "1000",
        "created_s": 100, "expires_s": None, "origin": ORIGIN, "key_id": "k", "sealed": secrets.token_bytes(size_bytes),
        "key": secrets.token_bytes(40),
    }  # fmt: skip
    return Content(**{**told, **words})  # type: ignore[arg-type]


def in_files(folder: Path, *needles: bytes) -> list[bytes]:
    """Those of `needles` that stand in any file there."""
    raw = b"".join(path.read_bytes() for path in folder.iterdir())
    return [needle for needle in needles if needle in raw]


def erased(vault: Vault, wanted: Wanted) -> int:
    count = vault.doom("order", wanted)
    while vault.erase("order", 1000):
        pass
    return count


def test_what_is_kept_is_found_by_its_event_in_a_file_of_our_own(vault: Vault, tmp_path: Path) -> None:
    one, other = content("e1"), content("e2", expires_s=500, user=None, uid=None)
    vault.keep([one, other])
    assert (vault.find("e1"), vault.find("e2"), vault.find("e3")) == (one, other, None)
    assert vault.size() == 2
    assert vault.under_other_keys(["k", "l"]) == 0
    assert vault.under_other_keys(["l"]) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    with pytest.raises(VaultUnwritable, match="UNIQUE"):
        vault.keep([content("e3"), one])
    assert vault.find("e3") is None


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        (Wanted(user="joe"), ["ann"]),
        (Wanted(user="1000"), ["ann"]),
        (Wanted(user="1001"), ["old", "other", "joes"]),
        (Wanted(connection="flow-2"), ["old", "ann", "joes"]),
        (Wanted(event="old"), ["other", "ann", "joes"]),
        (Wanted(before_s=60), ["other", "ann", "joes"]),
        (Wanted(user="joe", before_s=60), ["other", "ann", "joes"]),
        (Wanted(user="ann", connection="flow-2"), ["old", "other", "ann", "joes"]),
        (Wanted(), []),
    ],
)
def test_what_meets_every_condition_is_erased_and_nothing_else(vault: Vault, wanted: Wanted, left: list[str]) -> None:
    kept = [
        content("old", created_s=50),
        content("other", connection="flow-2"),
        content("ann", user="ann", uid="1001"),
        content("joes"),
    ]
    vault.keep(kept)
    assert erased(vault, wanted) == len(kept) - len(left)
    assert [one.event for one in kept if vault.find(one.event) is not None] == left
    assert erased(vault, wanted) == 0
    assert vault.unfinished() == {}


def test_no_file_has_a_byte_of_a_key_that_was_erased(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of all sizes, over many pages of the file, erased from their midst, several transactions long."""
    monkeypatch.setattr(vaulting, "ERASED_AT_ONCE", 50)
    kept = [
        content(f"e{number}", size_bytes=secrets.choice((20, 300, 4100)), user=secrets.choice(("joe", "ann")))
        for number in range(400)
    ]
    for at in range(0, len(kept), 40):
        vault.keep(kept[at : at + 40])
    joes, anns = ([one for one in kept if one.user == user] for user in ("joe", "ann"))
    parts = {
        user: [part for one in of for part in (one.key[:20], one.key[20:])]
        for user, of in (("joe", joes), ("ann", anns))
    }
    sealed = [part for one in kept for part in (one.sealed[:20], one.sealed[-20:])]
    assert len(in_files(tmp_path, *parts["joe"])) == len(parts["joe"])
    assert erased(vault, Wanted(user="joe")) == len(joes)
    assert in_files(tmp_path, *parts["joe"]) == []
    assert (tmp_path / f"{FILE_NAME}-wal").stat().st_size == 0
    vault.keep([content(f"later{number}") for number in range(100)])
    assert erased(vault, Wanted(before_s=101, connection="flow-1")) == len(anns) + 100
    assert in_files(tmp_path, *parts["joe"], *parts["ann"]) == []
    assert len(in_files(tmp_path, *sealed)) < len(sealed) // 20  # which no key opens any more


def test_a_key_that_is_gone_leaves_a_ciphertext_that_nobody_opens_and_no_plaintext_was_ever_there(
    vault: Vault, tmp_path: Path
) -> None:
    sealer = open_content_sealer(tmp_path)
    clear = secrets.token_bytes(32)
    sealed, key = sealer.sealed(clear, about(ORIGIN, "e1"))
    vault.keep([content("e1", sealed=sealed, key=key, key_id=sealer.key_id)])
    found = vault.find("e1")
    assert found is not None
    assert sealer.opened(found.key_id, found.key, found.sealed, about(found.origin, found.event)) == clear
    assert in_files(tmp_path, clear, key) == [key]
    erased(vault, Wanted(event="e1"))
    assert in_files(tmp_path, clear, key, key[:16], key[-16:]) == []


def test_what_is_to_be_erased_is_shown_to_nobody_and_an_erasure_that_was_begun_is_not_forgotten(tmp_path: Path) -> None:
    first = Vault(tmp_path)
    first.keep([content("e1"), content("e2", user="ann")])
    assert first.doom("order-1", Wanted(user="joe")) == 1
    assert first.find("e1") is None
    first.close()
    again = Vault(tmp_path)
    assert again.unfinished() == {"order-1": 1}
    assert not again.erase("order-1", 1000)
    assert again.unfinished() == {}
    assert (again.size(), again.find("e1")) == (1, None)
    again.close()


def test_what_has_its_time_behind_it_is_erased_and_a_shorter_time_holds_for_what_is_there(vault: Vault) -> None:
    vault.keep([content("ever"), content("long", expires_s=1100), content("short", expires_s=110)])
    assert vault.doom_expired("o", 109) == 0
    assert vault.doom_expired("o", 110) == 1
    vault.limit(60)
    assert vault.doom_expired("p", 159) == 0
    assert vault.doom_expired("p", 160) == 2


def test_content_of_events_that_never_came_on_record_is_removed_and_the_others_are_asked_about_once(
    tmp_path: Path,
) -> None:
    asked: list[tuple[list[str], int]] = []

    def gone(events: Set[str], since_s: int) -> Set[str]:
        asked.append((sorted(events), since_s))
        return events & {"lost"}

    before = Vault(tmp_path)
    lost = content("lost")
    before.keep([content("e1"), lost, content("e2", created_s=90)])
    before.close()
    after = Vault(tmp_path)
    assert after.remove_orphans(gone) == 1
    assert in_files(tmp_path, lost.key[:16], lost.key[-16:]) == []
    assert after.remove_orphans(gone) == 0
    after.keep([content("e3")])
    assert after.remove_orphans(gone) == 0
    assert asked == [(["e1", "e2", "lost"], 90), (["e3"], 100)]
    assert after.size() == 3
    after.close()


def test_requests_to_see_something_and_what_becomes_of_them_are_kept(vault: Vault) -> None:
    other = replace(ASKED, id="r2", event="e2")
    for one in (ASKED, other, replace(ASKED, approved_by=Person(name="bob"), approved_s=20)):
        vault.note(one)
    agreed = vault.unmasking("r1")
    assert agreed is not None
    assert agreed.approved_by == Person(name="bob")
    assert vault.unmaskings() == [other, agreed]
    assert vault.unmaskings_of("e1") == [agreed]
    assert vault.unmasking("r3") is None


def test_who_reads_the_file_meanwhile_is_told_for_its_wal_cannot_be_emptied(vault: Vault, tmp_path: Path) -> None:
    vault.keep([content("e1")])
    vault._conn.execute("PRAGMA busy_timeout = 0")
    with sqlite3.connect(tmp_path / FILE_NAME) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM content").fetchall()
        vault.doom("o", Wanted())
        with pytest.raises(VaultUnwritable, match="still in its WAL"):
            vault.erase("o", 1000)
        assert vault.unfinished() == {}
        assert (tmp_path / f"{FILE_NAME}-wal").stat().st_size > 0
    reader.close()
    assert vault.unfinished() == {}, "the next look, once nobody reads it any more"
    assert (tmp_path / f"{FILE_NAME}-wal").stat().st_size == 0


@pytest.mark.parametrize("what", ["garbage", "folder", "link"])
def test_a_file_that_is_none_is_told(tmp_path: Path, what: str) -> None:
    path = tmp_path / FILE_NAME
    match what:
        case "garbage":
            path.write_bytes(b"no database at all" * 100)
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"content\.db"):
        Vault(tmp_path)
