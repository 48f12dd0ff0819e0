"""The capture files of sessions: kept apart, and a failing one ends alone."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from audit_events import CURL

from mitmsec.audit.event import BytesSeen, ConnectionSeen, Outcome
from mitmsec.audit.flows import Flow
from mitmsec.capture.writer import CaptureWriter
from mitmsec.core.model import Action, Endpoint
from mitmsec.service.captures import Captures

LOCAL, REMOTE = Endpoint.of("127.0.0.1", 40000), Endpoint.of("192.0.2.7", 443)
NOW_NS = 1_762_000_000_000_000_000


def first(flow: str, data: bytes = b"") -> BytesSeen:
    return BytesSeen(flow=flow, sent=True, data=data, process=CURL, local=LOCAL, remote=REMOTE)


def over(flow: str, outcome: Outcome = Outcome.COMPLETED) -> ConnectionSeen:
    return ConnectionSeen(
        flow=flow,
        process=CURL,
        protocol="tls",
        local=LOCAL,
        remote=REMOTE,
        action=Action.CAPTURE,
        rule="kept for the works council",
        reason="",
        bytes_sent=0,
        bytes_received=0,
        duration_ms=0,
        outcome=outcome,
    )


def opened(captures: Captures, session: str, path: Path) -> None:
    captures.open(session, os.open(path, os.O_WRONLY | os.O_CREAT), f"command of {session}")


def test_each_session_has_its_own_file(tmp_path: Path) -> None:
    failures: list[tuple[str, str]] = []
    captures = Captures(lambda session, why: failures.append((session, why)))
    for session in ("run-1", "run-2"):
        opened(captures, session, tmp_path / session)
        captures.piece(session, first(f"flow-of-{session}", f"payload of {session}".encode()), NOW_NS)
        captures.ended(session, over(f"flow-of-{session}"), NOW_NS)
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
    captures.ended("run-1", over("flow-1"), NOW_NS)
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


def test_a_flow_that_cannot_stand_in_the_file_is_left_out_alone_and_said_once(tmp_path: Path) -> None:
    failures: list[str] = []
    left_out: list[tuple[str, str]] = []
    captures = Captures(
        lambda session, why: failures.append(session), lambda session, flow, why: left_out.append((session, flow))
    )
    opened(captures, "run-1", tmp_path / "file")
    nowhere = BytesSeen(
        flow="flow-0", sent=True, data=b"lost", process=CURL, local=LOCAL, remote=Endpoint(address="nowhere", port=1)
    )
    for _ in range(2):
        captures.piece("run-1", nowhere, NOW_NS)
    captures.piece("run-1", first("flow-1", b"payload"), NOW_NS)
    captures.close_all()
    assert (failures, left_out) == ([], [("run-1", "flow-0")])
    assert b"payload" in (tmp_path / "file").read_bytes()
    assert b"lost" not in (tmp_path / "file").read_bytes()


def test_the_file_says_the_host_what_was_decided_and_how_it_ended(tmp_path: Path) -> None:
    captures = Captures(lambda session, why: None)
    opened(captures, "run-1", tmp_path / "file")
    flow = Flow("flow-1", "run-1", 0, CURL, "a.example", LOCAL, REMOTE)
    captures.piece("run-1", BytesSeen(flow="flow-1", sent=True, data=b"x"), NOW_NS, flow)
    captures.ended("run-1", over("flow-1", Outcome.BLOCKED), NOW_NS)
    captures.close_all()
    data = (tmp_path / "file").read_bytes()
    assert b"a.example" in data
    assert b"action: capture\nrule: kept for the works council\noutcome: blocked" in data


@pytest.mark.parametrize(("outcome", "flag"), [(Outcome.CUT, 0x04), (Outcome.COMPLETED, 0x01)])
def test_who_was_reset_sees_a_reset(tmp_path: Path, outcome: Outcome, flag: int) -> None:
    """In the TCP flags of the closing packet, the last that has a TCP header from us to the origin or back."""
    captures = Captures(lambda session, why: None)
    opened(captures, "run-1", tmp_path / "file")
    captures.piece("run-1", first("flow-1", b"x"), NOW_NS)
    captures.ended("run-1", over("flow-1", outcome), NOW_NS)
    captures.close_all()
    flags = {packet[33] & 0x05 for packet in packets((tmp_path / "file").read_bytes())}
    assert flags - {0} == {flag}


def packets(data: bytes) -> list[bytes]:
    """The enhanced packets' contents (draft-ietf-opsawg-pcapng, 4.3)."""
    found, at = [], 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind == 6:
            (length,) = struct.unpack_from("<I", data, at + 20)
            found.append(data[at + 28 : at + 28 + length])
        at += size
    return found


@pytest.mark.parametrize("error", [OverflowError("too large"), struct.error("argument out of range")])
def test_a_number_that_no_file_can_hold_ends_that_capture_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(self: CaptureWriter) -> bytes:
        raise error

    monkeypatch.setattr(CaptureWriter, "_statistics", broken)
    failures: list[str] = []
    captures = Captures(lambda session, why: failures.append(session))
    opened(captures, "run-1", tmp_path / "file")
    captures.close_all()
    assert failures == ["run-1"]
