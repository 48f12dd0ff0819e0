"""Flows of a capture as a policy can be asked about them: mitmsec's own file, and what other tools make."""

from __future__ import annotations

import io
import shutil
import socket
import struct
import subprocess
from pathlib import Path

import pytest
import quic_packets
from hellos import hello, server_name
from msgspec.structs import replace

from mitmsec.audit.past_flows import FIRST_BYTES
from mitmsec.capture import pcapng
from mitmsec.capture.writer import CaptureWriter
from mitmsec.core.model import Action, Confidence, Direction, Endpoint, Process, Transport
from mitmsec.core.past_flow import PastFlow, Verdict
from mitmsec.core.sniff import Protocol
from mitmsec.service.captured_flows import NotPcapng, captured_flows, past, recorded
from mitmsec_redirect.recorded_flows import RecordedFlow
from mitmsec_redirect.replay import CaptureUnreadable

LOCAL, REMOTE = Endpoint.of("10.0.0.1", 40000), Endpoint.of("203.0.113.9", 443)
CURL = Process(pid=42, exe="/usr/bin/curl", name="curl", user="alice", unit="app.service", confidence=Confidence.KERNEL)
WGET = Process(pid=0xFFFF_FFFF, exe="/usr/bin/wget", name="wget")
PACKETS = Path(__file__).parents[1] / "data" / "packets.pcap"


class _Kept(io.BytesIO):
    def close(self) -> None:
        pass


def capture(folder: Path, *, ended: bool = True) -> Path:
    """As `mitmsec run --capture` writes it."""
    file = _Kept()
    writer = CaptureWriter(file)
    writer.open_flow("f1", CURL, LOCAL, REMOTE, 10**18, "flow: f1", host="a.test")
    writer.data("f1", True, hello(server_name(b"a.test")), 10**18 + 5)
    if ended:
        writer.end_flow("f1", 10**18 + 9, reset=False, comment="action: decrypt\nrule: defaults\noutcome: completed")
    writer.close()
    path = folder / "ours.pcapng"
    path.write_bytes(file.getvalue())
    return path


def test_a_capture_of_ours_says_who_where_what_and_what_was_made_of_it(tmp_path: Path) -> None:
    read: list[int] = []
    path = capture(tmp_path)
    ((flow, found),) = captured_flows(path, WGET, read.append)
    assert found.ja4 is not None
    assert replace(found, ja4=None) == PastFlow(
        process=CURL, local=LOCAL, remote=REMOTE, at_s=1e9, protocol=Protocol.TLS, name="a.test", ech=False, is_tls=True
    )
    assert recorded(flow) == Verdict(action=Action.DECRYPT, rule="defaults", reason="as the capture says")
    assert read == [path.stat().st_size]


def test_of_a_flow_whose_end_is_not_in_the_file_nothing_is_known_of_before(tmp_path: Path) -> None:
    ((flow, _),) = captured_flows(capture(tmp_path, ended=False), None)
    assert recorded(flow) is None


def flow(**changed: object) -> RecordedFlow:
    facts = {
        "transport": Transport.TCP, "local": LOCAL, "remote": REMOTE, "outbound": True, "process": Process(pid=0),
        "host": None, "first_ns": 0, "last_ns": 0, "sent_bytes": 0, "received_bytes": 0, "is_reset": False, "said": {},
    }  # fmt: skip
    return RecordedFlow(**(facts | changed))  # type: ignore[arg-type]


def test_what_the_file_does_not_say_is_unknown_and_a_program_may_be_given() -> None:
    assert past(flow(), None).unknown == FIRST_BYTES
    assert past(flow(), None).process == Process(pid=0)
    assert past(flow(), WGET).process == WGET
    assert past(flow(process=Process(pid=7)), WGET).process.pid == 7
    udp = past(flow(transport=Transport.UDP, outbound=False), None)
    assert (udp.unknown, udp.direction, udp.protocol) == (frozenset(), Direction.INBOUND, None)
    assert recorded(flow(said={"action": "teleport", "rule": "x"})) is None


def test_bytes_that_break_their_protocols_rules_are_malformed(tmp_path: Path) -> None:
    file = _Kept()
    writer = CaptureWriter(file)
    writer.open_flow("f1", CURL, LOCAL, REMOTE, 10**18, "flow: f1")
    writer.data("f1", True, b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff", 10**18 + 5)
    writer.close()
    path = tmp_path / "c.pcapng"
    path.write_bytes(file.getvalue())
    ((_, found),) = captured_flows(path, None)
    assert (found.is_malformed, found.protocol) == (True, None)


def test_a_flow_of_quic_is_shown_by_whom_it_asks_for_and_rules_by_host_do_not_hold(tmp_path: Path) -> None:
    (said,) = quic_packets.REAL["curl"]
    udp = struct.pack("!HHHH", LOCAL.port, REMOTE.port, 8 + len(said), 0) + said
    ends = (socket.inet_aton(end.address) for end in (LOCAL, REMOTE))
    packet = struct.pack("!BxHxxHBBH", 0x45, 20 + len(udp), 0, 64, 17, 0) + b"".join(ends) + udp
    path = tmp_path / "quic.pcapng"
    path.write_bytes(
        pcapng.section_header(application="test")
        + pcapng.interface_description(name="any")
        + pcapng.enhanced_packet(packet, time_ns=10**18, outbound=True)
    )
    ((flow, found),) = captured_flows(path, CURL)
    assert (flow.host, found.name, found.transport) == ("www.example.com", None, Transport.UDP)


def test_a_capture_of_the_older_kind_is_said_to_be_one() -> None:
    with pytest.raises(NotPcapng, match="older kind"):
        list(captured_flows(PACKETS, None))


def test_a_file_that_was_cut_off_gives_its_flows_and_then_says_so(tmp_path: Path) -> None:
    path = capture(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    found = captured_flows(path, None)
    assert next(found)[1].name == "a.test"
    with pytest.raises(CaptureUnreadable):
        next(found)


@pytest.mark.skipif(shutil.which("editcap") is None, reason="editcap is not installed (Debian: tshark)")
def test_captures_that_wireshark_wrote_are_read(tmp_path: Path) -> None:
    """Its own blocks and options: converted from a pcap, and written anew from ours."""
    for name, source in (("converted", PACKETS), ("anew", capture(tmp_path))):
        path = tmp_path / f"{name}.pcapng"
        subprocess.run(["editcap", "-F", "pcapng", str(source), str(path)], check=True, capture_output=True)
        found = list(captured_flows(path, None))
        assert found, name
    assert (found[0][1].name, found[0][1].process.exe) == ("a.test", "/usr/bin/curl")
