"""Reading the log: filters, one event, verification, and reading without leaving anything behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
from audit_events import connection, draft, finding, forging, indexed, log_of, rehashed, request, store_in

from mitmsec.audit.criteria import Filter, parse_time
from mitmsec.audit.event import OURS, FaultSeen, Kind, Outcome
from mitmsec.audit.reading import NoLog, Unreadable
from mitmsec.audit.review import Review, opened
from mitmsec.audit.store import FILE_NAME
from mitmsec.audit.verifying import Broken, Other, Root, Verified
from mitmsec.core.model import Action, Process

PYTHON = Process(pid=12, exe="/usr/bin/python3.13", name="python3")
NAMELESS = Process(pid=13, name="gone")

SEEN = [
    connection("flow-0", outcome=Outcome.OPEN),
    request("flow-0"),
    finding("flow-0"),
    connection("flow-0"),
    connection("flow-1", process=PYTHON, host="www.example.org", action=Action.BYPASS),
    connection("flow-2", process=NAMELESS, host="notexample.com", action=Action.BLOCK, outcome=Outcome.BLOCKED),
    FaultSeen(what="stranger", detail='said "hello" 100%'),
]


@pytest.fixture(params=["looked through", "indexed"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    log_of(tmp_path, SEEN)
    if request.param == "indexed":
        indexed(tmp_path)
        with opened(tmp_path) as log:
            assert log.indexed_size == len(SEEN)
    return tmp_path


@pytest.fixture
def log(folder: Path) -> Iterator[Review]:
    with opened(folder) as made:
        yield made


def at(second: int) -> datetime:
    return datetime(2026, 11, 3, 10, 0, second, tzinfo=UTC)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(), [0, 1, 2, 3, 4, 5, 6]),
        (Filter(after=-1), [0, 1, 2, 3, 4, 5, 6]),
        (Filter(after=3), [4, 5, 6]),
        (Filter(after=2, kind=Kind.CONNECTION), [3, 4, 5]),
        (Filter(after=6), []),
        (Filter(limit=2), [5, 6]),
        (Filter(outcome=Outcome.BLOCKED), [5]),
        (Filter(outcome=Outcome.OPEN), [0]),
        (Filter(rule="defaults", limit=2), [4, 5]),
        (Filter(rule="[d]efault?"), [0, 3, 4, 5]),
        (Filter(rule="default"), []),
        (Filter(session="run-1", kind=Kind.FAULT), [6]),
        (Filter(session="run-2"), []),
        (Filter(limit=99), [0, 1, 2, 3, 4, 5, 6]),
        (Filter(kind=Kind.CONNECTION), [0, 3, 4, 5]),
        (Filter(kind=Kind.CONNECTION, limit=1), [5]),
        (Filter(app="curl"), [0, 1, 2, 3, 6]),
        (Filter(app="gone"), [5]),
        (Filter(app="/usr/bin/py*"), [4]),
        (Filter(app="py*"), []),
        (Filter(host="example.com"), [0, 1, 2, 3, 6]),
        (Filter(host="EXAMPLE.org"), [4]),
        (Filter(host="example"), []),
        (Filter(host="*example.com"), [0, 1, 2, 3, 5, 6]),
        (Filter(host="_xample.com"), []),
        (Filter(host="192.0.2.7"), [0, 3, 4, 5]),
        (Filter(host="192.0.2.*", action=Action.BLOCK), [5]),
        (Filter(host="::ffff:192.0.2.7", limit=1), [5]),
        (Filter(host="192.0.2.70"), []),
        (Filter(app="CURL", kind=Kind.FINDING), [2]),
        (Filter(app="/USR/bin/PY*"), [4]),
        (Filter(action=Action.BLOCK), [5]),
        (Filter(since=at(4)), [4, 5, 6]),
        (Filter(until=at(2)), [0, 1]),
        (Filter(since=at(2), until=at(4), kind=Kind.CONNECTION), [3]),
        (Filter(text="MUST NOT LEAVE"), [2]),
        (Filter(text='said "hello" 100%'), [6]),
        (Filter(text="4711", limit=1), [6]),
        (Filter(text="nothing says this"), []),
        (Filter(text="evidence"), []),
    ],
    ids=str,
)
def test_a_filter_finds_exactly_its_events_oldest_first(log: Review, wanted: Filter, expected: list[int]) -> None:
    assert [event["seq"] for event in log.events(wanted)] == expected


def test_an_event_is_found_by_its_id_and_by_its_number(log: Review) -> None:
    by_id, by_number = log.event("flow-0"), log.event("3")
    assert by_id == by_number
    assert by_id is not None
    assert by_id["outcome"] == "completed"
    still_open = log.event("flow-0.open")
    assert still_open is not None
    assert still_open["seq"] == 0
    assert log.event("99") is None
    assert log.event("9" * 30) is None
    assert log.event("nobody") is None


def test_what_happened_on_a_connection_is_found(log: Review) -> None:
    assert [event["seq"] for event in log.of_connection("flow-0")] == [0, 1, 2, 3]
    assert log.size() == 7


def test_the_statistics_count_each_connection_once(log: Review) -> None:
    rows = {(row["app"], row["action"]): (row["connections"], row["sent"], row["received"]) for row in log.stats()}
    assert rows == {
        ("/usr/bin/curl", "decrypt"): (1, 120, 4500),
        ("/usr/bin/python3.13", "bypass"): (1, 120, 4500),
        ("gone", "block"): (1, 120, 4500),
    }


def test_of_connections_whose_bytes_were_not_counted_the_statistics_count_none(tmp_path: Path) -> None:
    log_of(tmp_path, [msgspec.structs.replace(connection(), bytes_sent=None, bytes_received=None)])
    with opened(tmp_path) as log:
        (row,) = log.stats()
    assert (row["connections"], row["sent"], row["received"]) == (1, 0, 0)


NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10m", NOW - timedelta(minutes=10)),
        ("2h", NOW - timedelta(hours=2)),
        ("0s", NOW),
        ("3d", NOW - timedelta(days=3)),
        ("1w", NOW - timedelta(weeks=1)),
        ("2026-11-03T10:00:00Z", NOW - timedelta(hours=2)),
        ("2026-11-03T10:00:00.5+02:00", datetime(2026, 11, 3, 10, 0, 0, 500_000, timezone(timedelta(hours=2)))),
    ],
)
def test_a_time_is_an_instant_or_a_span_before_now(text: str, expected: datetime) -> None:
    assert parse_time(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "m", "10", "-5m", "soon", "99999999999999h", "2026-13-01", "٣m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text, NOW)


# --- verification -----------------------------------------------------------------------------------------------------
def tampered(folder: Path, *scripts: str) -> None:
    with forging(folder / FILE_NAME) as conn:
        for script in scripts:
            conn.executescript(script)


def verified(folder: Path, kept: Root | None = None) -> Verified | Broken | Other:
    with opened(folder) as log:
        return log.proofs.verify(kept)


def test_an_untouched_log_verifies_and_tells_of_its_progress(log: Review) -> None:
    told: list[int] = []
    result = log.proofs.verify(told=told.append)
    assert isinstance(result, Verified)
    assert result.root.size == len(SEEN)
    assert told == [0]


SWAP = """
    UPDATE events SET envelope = (SELECT envelope FROM events o WHERE o.seq = 5 - events.seq) WHERE seq IN (2, 3)
"""


@pytest.mark.parametrize(
    ("change", "seq"),
    [
        ("UPDATE events SET envelope = edit(envelope, 'curl', 'wget') WHERE seq = 1", 1),
        ("UPDATE events SET envelope = x'00ff' WHERE seq = 4", 4),
        ("UPDATE events SET envelope = NULL WHERE seq = 4", 4),
        ("UPDATE tiles SET hashes = CAST(substr(hashes, 1, 128) || zeroblob(32) || substr(hashes, 161) AS BLOB)", 4),
        ("UPDATE tiles SET hashes = 'text'", 0),
        ("UPDATE tiles SET hashes = CAST(hashes || zeroblob(32) AS BLOB)", 7),
        ("DELETE FROM events WHERE seq >= 5", 5),
        ("INSERT INTO checkpoints VALUES (6, 'none')", 0),
        ("UPDATE events SET envelope = pack(zeroblob(61000)) WHERE seq = 4", 4),
        ("DELETE FROM events WHERE seq = 0", 0),
        ("DELETE FROM events WHERE seq = 3", 3),
        ("UPDATE events SET seq = seq + 1 WHERE seq = 6", 6),
        (SWAP, 2),
    ],
)
def test_a_changed_log_is_broken_at_the_changed_event(folder: Path, change: str, seq: int) -> None:
    tampered(folder, change)
    result = verified(folder)
    assert isinstance(result, Broken)
    assert result.seq == seq


def test_a_row_added_by_somebody_else_is_found(folder: Path) -> None:
    tampered(folder, "INSERT INTO events VALUES (7, pack('{}'))")
    result = verified(folder)
    assert isinstance(result, Broken)
    assert result.seq == 7


@pytest.mark.parametrize("envelope", [b"[]", b"no json", b'{"seq":7}', b'{"seq": 8}', b'{"names":5,"seq":7}'])
def test_a_row_that_is_in_the_tree_but_is_no_event_is_found(folder: Path, envelope: bytes) -> None:
    tampered(folder, f"INSERT INTO events VALUES (7, pack('{envelope.decode()}'))")
    rehashed(folder / FILE_NAME)
    broken = verified(folder)
    assert isinstance(broken, Broken)
    assert (broken.seq, broken.why[:7]) == (7, "changed")


def test_a_log_cut_at_its_end_tree_and_all_is_only_found_with_what_was_kept(folder: Path) -> None:
    result = verified(folder)
    assert isinstance(result, Verified)
    tampered(folder, "DELETE FROM events WHERE seq >= 5")
    assert isinstance(verified(folder), Broken)
    rehashed(folder / FILE_NAME)
    assert isinstance(verified(folder), Verified)
    other = verified(folder, result.root)
    assert isinstance(other, Other)
    assert other.why == "it ends after 5 events, and had 7 when that was kept"


def test_a_damaged_page_is_reported_and_not_raised(tmp_path: Path) -> None:
    path = log_of(tmp_path, [connection(f"flow-{number}") for number in range(60)])
    data = bytearray(path.read_bytes())
    page = (len(data) // 4096 - 3) * 4096
    data[page : page + 4096] = os.urandom(4096)
    path.write_bytes(data)
    result = verified(tmp_path)
    assert isinstance(result, Broken)


def test_a_row_that_sqlite_cannot_read_is_reported_and_not_raised(log: Review) -> None:
    log._conn.set_progress_handler(lambda: 1, 1)  # sqlite3.OperationalError from within a query
    assert log.proofs.verify() == Broken(0, "unreadable: interrupted")


# --- proofs -----------------------------------------------------------------------------------------------------------
# --- opening ----------------------------------------------------------------------------------------------------------
def test_a_log_that_is_not_there_is_said_so_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(NoLog, match="no log"), opened(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_log_is_said_so(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"something else entirely" * 100)
    with pytest.raises(Unreadable, match="not a database"), opened(tmp_path):
        pass


def test_a_live_log_is_read_up_to_its_last_batch(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.append([draft(connection("flow-0"))])
    with opened(tmp_path) as log:
        assert log.size() == 1
        store.append([draft(connection("flow-1"))])
        assert log.size() == 2
        assert isinstance(log.proofs.verify(Root(store.tree.size, store.tree.root())), Verified)
    store.append([draft(connection("flow-2"))])
    store.close()


@pytest.fixture
def common_folder() -> Iterator[Path]:
    """A folder that other users can be let into; pytest's own are closed."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
@pytest.mark.parametrize("fate", ["live", "killed", "closed"])
def test_reading_as_root_leaves_nothing_that_the_recorders_user_cannot_use(common_folder: Path, fate: str) -> None:
    """SQLite makes its index files as the log's owner when root reads, so the recorder goes on afterwards."""
    uid, folder = 54_321, common_folder
    os.chown(folder, uid, uid)
    writer = _writer(folder, uid)
    assert writer.stdout is not None
    assert writer.stdin is not None
    assert writer.stdout.readline() == b"1\n"
    if fate == "killed":
        writer.kill()
        writer.wait()
        (folder / f"{FILE_NAME}-shm").unlink()
    elif fate == "closed":
        writer.communicate(b"")
    with opened(folder) as log:
        assert isinstance(log.proofs.verify(), Verified)
        assert log.size() == 1
    assert {path.stat().st_uid for path in folder.iterdir()} == {uid}
    if fate == "live":
        writer.stdin.write(b"\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == b"2\n"
        writer.communicate(b"")
    else:
        again = _writer(folder, uid)
        assert again.communicate(b"")[0] == b"2\n"
    assert {path.stat().st_uid for path in folder.iterdir()} == {uid}


def _writer(folder: Path, uid: int) -> subprocess.Popen[bytes]:
    """A process of user `uid` that appends one event, says the size, and one more for each line that it reads."""
    code = """
import os, sys
sys.path[:0] = [entry for entry in sys.argv[3:]]
from pathlib import Path
from audit_events import connection, draft, store_in
import mitmsec.audit.schema  # as long as it may be read
os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
store = store_in(Path(sys.argv[1]))
while True:
    print(store.append([draft(connection())]).size, flush=True)
    if not sys.stdin.readline():
        break
store.close()
"""
    here = str(Path(__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(uid), here], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_a_log_in_a_folder_that_may_only_be_read_is_read_where_it_lies(common_folder: Path) -> None:
    path = log_of(common_folder, SEEN)
    common_folder.chmod(0o755)
    path.chmod(0o444)
    code = (
        "import os, sys; from pathlib import Path; from mitmsec.audit.review import opened\n"
        "os.setgid(54321); os.setuid(54321)\n"
        "with opened(Path(sys.argv[1])) as log: print(log.size())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(common_folder)], capture_output=True, check=True)
    assert done.stdout == f"{len(SEEN)}\n".encode()
    store = store_in(common_folder)  # not ended: what is in the write-ahead log cannot be left out silently
    store.append([draft(connection())])
    (common_folder / f"{FILE_NAME}-shm").unlink()
    done = subprocess.run([sys.executable, "-c", code, str(common_folder)], capture_output=True)
    store.close()
    assert b"NoLog" in done.stderr


def test_a_runs_connections_are_counted_once_each_by_action(log: Review) -> None:
    """The event that a long connection has while it lives does not count."""
    ended = {("decrypt", "completed"): 1, ("bypass", "completed"): 1, ("block", "blocked"): 1}
    assert log.counts("run-1", at(0)) == ended
    assert log.counts("run-1", at(5)) == {("block", "blocked"): 1}
    assert log.counts("run-2", at(0)) == {}


def test_requests_that_a_finding_stopped_are_found_and_counted(tmp_path: Path) -> None:
    stopped = msgspec.structs.replace(request("flow-0"), status=403, outcome=Outcome.BLOCKED, answered_by=OURS)
    log_of(tmp_path, [request("flow-0"), stopped, connection("flow-0"), connection("flow-1", outcome=Outcome.BLOCKED)])
    with opened(tmp_path) as log:
        assert [event["seq"] for event in log.events(Filter(outcome=Outcome.BLOCKED))] == [1, 3]
        assert [log.stopped("run-1", at(0)), log.stopped("run-1", at(2)), log.stopped("run-2", at(0))] == [1, 0, 0]


def test_an_event_that_is_no_json_any_more_is_told_as_such(folder: Path) -> None:
    tampered(folder, "UPDATE events SET envelope = pack('{') WHERE seq = 5")
    with opened(folder) as log:
        with pytest.raises(Unreadable, match="no longer what was written"):
            list(log.events(Filter()))
        with pytest.raises(Unreadable, match="no longer what was written"):
            log.event("5")
