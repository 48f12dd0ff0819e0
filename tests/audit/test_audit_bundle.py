"""A bundle proves each of its events to somebody who has no log; whatever is changed in it is found."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from audit_events import SIGNER, connection, draft, finding, request, store_in

from mitmsec.audit.bundle import CONSISTENCY, EVENTS, NOTE, PROOFS, Flawed, KeptOther, Sound, TooMany, check
from mitmsec.audit.bundle_file import read, written
from mitmsec.audit.bundling import Asked, Bundle, bundled
from mitmsec.audit.checkpoint import Checkpoint, LogKey
from mitmsec.audit.event import Kind
from mitmsec.audit.overview import Among
from mitmsec.audit.review import Filter, opened
from mitmsec.seal import LogSigner, checks

AT = datetime(2026, 11, 9, 10, 0, tzinfo=UTC)
OTHER = LogSigner("mitmsec.log/test", bytes(reversed(range(32))))
KEY = SIGNER.key


def asked(kept: str = "", kind: Kind | None = None) -> Asked:
    return Asked(wanted=Filter(kind=kind), among=Among(), kept=kept, said="everything", by="rosa", at=AT)


@pytest.fixture(scope="module")
def notes() -> list[str]:
    """Of 3 events, and of all."""
    return []


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, notes: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("bundled")
    store = store_in(folder)
    for events in ([connection(), request(), finding()], [connection(f"flow-{number}") for number in range(2, 11)]):
        store.append([draft(one) for one in events], signs=True)
        with opened(folder) as review:
            notes.append(review.proofs.note()[0])  # type: ignore[index]
    store.close()
    return folder


def made(log: Path, order: Asked) -> Bundle:
    with opened(log) as review:
        found = bundled(review, order)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def files(log: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("zip") / "b.zip"
    path.write_bytes(written(made(log, asked())))
    return read(path)


def test_what_was_exported_is_proven_with_the_key_that_was_kept(files: dict[str, bytes], notes: list[str]) -> None:
    assert check(files, checks, [KEY], notes[1]) == Sound(
        events=12, origin="mitmsec.log/test", size=12, signed=True, kept=12
    )
    assert check(files, checks) == Sound(events=12, origin="mitmsec.log/test", size=12, signed=False)


def test_some_events_are_proven_as_well_as_all(log: Path, tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_bytes(written(made(log, asked(kind=Kind.FINDING))))
    assert check(read(tmp_path / "b.zip"), checks, [KEY]) == Sound(
        events=1, origin="mitmsec.log/test", size=12, signed=True
    )


def test_an_older_checkpoint_that_was_kept_is_shown_to_be_this_logs_beginning(
    log: Path, notes: list[str], files: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "b.zip").write_bytes(written(made(log, asked(notes[0]))))
    with_path = read(tmp_path / "b.zip")
    found = check(with_path, checks, [KEY], notes[0])
    assert isinstance(found, Sound)
    assert found.kept == 3
    flawed = check(files, checks, [KEY], notes[0])
    assert isinstance(flawed, Flawed)
    assert "export it again, and give that checkpoint there" in flawed.why
    other = Checkpoint("mitmsec.log/test", 3, bytes(32)).signed(KEY, SIGNER.sign)
    assert check(with_path, checks, [KEY], other) == Flawed(why="its log is not shown to be the one that was kept")
    longer = Checkpoint("mitmsec.log/test", 99, bytes(32)).signed(KEY, SIGNER.sign)
    assert check(with_path, checks, [KEY], longer) == Flawed(why="its log is not shown to be the one that was kept")
    broken = check(with_path | {CONSISTENCY: b"{}"}, checks, [KEY], notes[0])
    assert isinstance(broken, Flawed)
    assert broken.why.startswith("consistency.json cannot be read")


def test_a_fork_of_the_same_size_is_not_the_log_that_was_kept(files: dict[str, bytes]) -> None:
    fork = Checkpoint("mitmsec.log/test", 12, bytes(32)).signed(KEY, SIGNER.sign)
    found = check(files, checks, [KEY], fork)
    assert isinstance(found, Flawed)
    assert "not the one that was kept" in found.why
    elsewhere = Checkpoint("another", 12, bytes(32)).signed(LogKey("another", KEY.public), SIGNER.sign)
    assert isinstance(check(files, checks, [KEY], elsewhere), Flawed)
    told = check(files, checks, (), elsewhere)
    assert isinstance(told, Flawed)
    assert "and what was kept of 'another'" in told.why


def lines(change: Callable[[list[bytes]], list[bytes]], *names: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    def changed(files: dict[str, bytes]) -> dict[str, bytes]:
        of = {name: b"".join(line + b"\n" for line in change(files[name].splitlines())) for name in names}
        return files | of

    return changed


CHANGES: list[tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str, int | None]] = [
    (lines(lambda rows: [rows[0].replace(b"curl", b"wget"), *rows[1:]], EVENTS), "not in the log", 1),
    (lines(lambda rows: rows[:-1], EVENTS), "11 events, and 12 proofs", None),
    (lines(lambda rows: [rows[1], rows[0], *rows[2:]], EVENTS), "has the proof of event 0", 1),
    (lines(lambda rows: [rows[1], rows[0], *rows[2:]], EVENTS, PROOFS), "event 0 stands behind event 1", 2),
    (lines(lambda rows: [rows[0], *rows[:-1]], EVENTS, PROOFS), "event 0 stands behind event 0", 2),
    (lines(lambda rows: [b"{}", *rows[1:]], EVENTS), "cannot be read", 1),
    (lines(lambda rows: [b'{"seq":-1}', *rows[1:]], EVENTS), "has the proof", 1),
    (lines(lambda rows: [b'{"index":0,"path":["!"]}', *rows[1:]], PROOFS), "cannot be read", 1),
    (lines(lambda rows: [b'{"index":0,"path":["AAAA"]}', *rows[1:]], PROOFS), "no hash", 1),
    (lines(lambda rows: [msgspec.json.encode({"index": 0, "path": ["A"] * 65}), *rows[1:]], PROOFS), "no path", 1),
    (lines(lambda rows: [b'{"index":0,"path":[]}', *rows[1:]], PROOFS), "not in the log", 1),
    (lambda files: files | {EVENTS: files[EVENTS][:-1]}, "ends in the middle of a line", None),
    (lambda files: {name: files[name] for name in (EVENTS, PROOFS)}, "it has no checkpoint.note", None),
    (lambda files: files | {NOTE: b"\xff"}, "checkpoint.note is no text", None),
    (lambda files: files | {NOTE: b"nonsense"}, "", None),
    (lambda files: files | {NOTE: files[NOTE].replace(b"12\n", b"13\n", 1)}, "", None),
    (lambda files: files | {NOTE: Checkpoint(KEY.name, 12, bytes(32)).signed(KEY, OTHER.sign).encode()}, "", None),
]


@pytest.mark.parametrize(("change", "why", "line"), CHANGES)
def test_whatever_is_changed_is_found_and_where(
    files: dict[str, bytes], change: Callable[[dict[str, bytes]], dict[str, bytes]], why: str, line: int | None
) -> None:
    found = check(change(files), checks, [KEY])
    assert isinstance(found, Flawed)
    assert why in found.why
    assert found.line == line


def test_another_key_did_not_sign_it(files: dict[str, bytes]) -> None:
    assert isinstance(check(files, checks, [OTHER.key]), Flawed)
    found = check(files, checks, [LogKey("another.log", KEY.public)])
    assert found == Flawed(why="the checkpoint is one of 'mitmsec.log/test', whose key was not given")


def test_no_bundle_is_made_against_a_checkpoint_of_another_log(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(log) as review:
        for kept in ("nonsense", Checkpoint("another", 3, bytes(32)).signed(KEY, SIGNER.sign)):
            with pytest.raises(KeptOther):
                bundled(review, asked(kept))
        monkeypatch.setattr("mitmsec.audit.bundling.EVENTS_LIMIT", 5)
        with pytest.raises(TooMany, match="5 events"):
            bundled(review, asked())


def test_events_that_no_checkpoint_stands_for_wait(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.append([draft(connection())])
    with opened(tmp_path) as review:
        assert bundled(review, asked()) is None
    store.close()
