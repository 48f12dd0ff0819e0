"""The capture files of sessions: kept apart, and a failing one ends alone."""

from __future__ import annotations

import os
from pathlib import Path

from audit_events import CURL

from mitmsec.audit.event import BytesSeen
from mitmsec.audit.flows import Flow
from mitmsec.core.model import Endpoint
from mitmsec.service.captures import Captures

LOCAL, REMOTE = Endpoint.of("127.0.0.1", 40000), Endpoint.of("192.0.2.7", 443)
NOW_NS = 1_762_000_000_000_000_000


def first(flow: str, data: bytes = b"") -> BytesSeen:
    return BytesSeen(flow=flow, sent=True, data=data, process=CURL, local=LOCAL, remote=REMOTE)


def opened(captures: Captures, session: str, path: Path) -> None:
    captures.open(session, os.open(path, os.O_WRONLY | os.O_CREAT), f"command of {session}")


def test_each_session_has_its_own_file(tmp_path: Path) -> None:
    failures: list[tuple[str, str]] = []
    captures = Captures(lambda session, why: failures.append((session, why)))
    for session in ("run-1", "run-2"):
        opened(captures, session, tmp_path / session)
        captures.piece(session, first(f"flow-of-{session}", f"payload of {session}".encode()), NOW_NS)
        captures.ended(session, f"flow-of-{session}", NOW_NS)
    captures.tick(NOW_NS + 10**9)
    captures.close("run-1")
    one = (tmp_path / "run-1").read_bytes()
    assert b"payload of run-1" in one
    assert b"payload of run-2" not in one
    captures.close_all()
    assert b"payload of run-2" in (tmp_path / "run-2").read_bytes()
    assert failures == []


def test_a_session_without_a_file_takes_everything_and_keeps_nothing() -> None:
    failures: list[str] = []
    captures = Captures(lambda session, why: failures.append(session))
    captures.piece("run-1", first("flow-1"), NOW_NS)
    captures.secrets("run-1", b"keys")
    captures.lost("run-1", 1)
    captures.ended("run-1", "flow-1", NOW_NS)
    captures.close("run-1")
    assert failures == []


def test_a_workers_pieces_belong_to_the_flow_that_its_gate_handed_over(tmp_path: Path) -> None:
    captures = Captures(lambda session, why: None)
    opened(captures, "run-1", tmp_path / "file")
    flow = Flow("flow-1", "run-1", 0, CURL, "a.example", LOCAL, REMOTE)
    for data in (b"one piece", b"another piece"):
        captures.piece("run-1", BytesSeen(flow="flow-1", sent=True, data=data), NOW_NS, flow)
    captures.close_all()
    data = (tmp_path / "file").read_bytes()
    assert b"one piece" in data
    assert b"another piece" in data
    assert data.count(b"sha256: ") == 1  # one flow, begun once


def test_a_piece_of_a_flow_that_nobody_described_is_left_out(tmp_path: Path) -> None:
    captures = Captures(lambda session, why: None)
    opened(captures, "run-1", tmp_path / "file")
    captures.piece("run-1", BytesSeen(flow="flow-1", sent=True, data=b"payload"), NOW_NS)
    captures.close_all()
    assert b"payload" not in (tmp_path / "file").read_bytes()


def test_a_capture_that_fails_is_told_once_and_ends_alone(tmp_path: Path) -> None:
    failures: list[str] = []
    captures = Captures(lambda session, why: failures.append(session))
    opened(captures, "run-1", tmp_path / "file")
    captures.open("run-2", os.open("/dev/full", os.O_WRONLY), "command")
    for session in ("run-1", "run-2"):
        captures.piece(session, first("flow-1", b"payload"), NOW_NS)
    captures.tick(NOW_NS + 10**9)
    captures.tick(NOW_NS + 2 * 10**9)
    captures.close_all()
    assert failures == ["run-2"]
    assert b"payload" in (tmp_path / "file").read_bytes()


def test_a_capture_whose_reader_goes_away_is_told_once() -> None:
    failures: list[str] = []
    captures = Captures(lambda session, why: failures.append(session))
    reader, writer = os.pipe()
    captures.open("run-1", writer, "command")
    os.close(reader)
    captures.piece("run-1", first("flow-1", b"payload"), NOW_NS)
    captures.tick(NOW_NS + 10**9)
    assert failures == ["run-1"]
    captures.piece("run-1", first("flow-2", b"payload"), NOW_NS)
    captures.close_all()
    assert failures == ["run-1"]
