"""From packets to flows and whose they are: mitmsec's own captures, and those of others."""

from __future__ import annotations

import io
import socket
import struct

import pytest
import quic_packets
from hellos import hello, server_name
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.capture import comment
from mitmsec.capture.segments import Conversation
from mitmsec.capture.writer import CaptureWriter
from mitmsec.core.model import Confidence, Endpoint, ParentProcess, Process, Transport
from mitmsec.core.sniff import Protocol, Sniffed
from mitmsec_certs.packet_cipher import Aes128
from mitmsec_redirect import recorded_flows
from mitmsec_redirect.pcapng_blocks import CapturedName, CapturedPacket, CapturedProcess, Reader
from mitmsec_redirect.recorded_flows import RecordedFlow, RecordedFlows, told

LOCAL, REMOTE = Endpoint(address="10.0.0.1", port=40000), Endpoint(address="203.0.113.9", port=443)
CURL = Process(
    pid=4242,
    started="2026-11-29T00:00:00.00Z",
    exe="/usr/bin/curl",
    name="curl",
    sha256="ab" * 32,
    user="alice",
    parent=ParentProcess(pid=4000, exe="/bin/bash"),
    source="connect_hook",
    confidence=Confidence.KERNEL,
)


def captured(data: bytes, time_ns: int = 0, outbound: bool | None = None, **more: object) -> CapturedPacket:
    known = {"link_type": 101, "process": None, "comments": ()} | more
    return CapturedPacket(time_ns=time_ns, data=data, outbound=outbound, **known)  # type: ignore[arg-type]


def flows(*packets: CapturedPacket | CapturedName) -> list[RecordedFlow]:
    recorded = RecordedFlows()
    return [*recorded.add(packets), *recorded.end()]


class Kept(io.BytesIO):
    """A file whose content outlives its closing."""

    def close(self) -> None:
        pass


def test_mitmsecs_own_capture_says_all_about_a_flow() -> None:
    file = Kept()
    writer = CaptureWriter(file)
    writer.open_flow("f1", CURL, LOCAL, REMOTE, 10**18, "flow: f1", host="example.com")
    writer.data("f1", True, b"question", 10**18 + 5)
    writer.data("f1", False, b"a longer answer", 10**18 + 6)
    writer.end_flow("f1", 10**18 + 9, reset=True, comment="action: decrypt\nrule: defaults")
    writer.close()
    (flow,) = flows(*Reader().feed(file.getvalue()))
    assert flow == RecordedFlow(
        transport=Transport.TCP,
        local=LOCAL,
        remote=REMOTE,
        outbound=True,
        process=CURL,
        host="example.com",
        first_ns=10**18,
        last_ns=10**18 + 9,
        sent_bytes=8,
        received_bytes=15,
        is_reset=True,
        said={"flow": "f1", "action": "decrypt", "rule": "defaults"},
    )


def test_the_same_ports_used_again_are_another_flow() -> None:
    syn, answer, _ = Conversation(LOCAL, REMOTE).opened()
    first, second = flows(captured(syn.data, 1), captured(answer.data, 2), captured(syn.data, 3))
    assert (first.first_ns, first.last_ns, second.first_ns) == (1, 2, 3)


def test_a_connection_from_outside_is_inbound_and_its_local_side_is_local() -> None:
    syn, answer, _ = Conversation(REMOTE, LOCAL).opened()
    (flow,) = flows(captured(syn.data, 1, False), captured(answer.data, 2, True))
    assert (flow.outbound, flow.local, flow.remote) == (False, LOCAL, REMOTE)
    (unsure,) = flows(captured(syn.data, 1), captured(answer.data, 2))
    assert (unsure.outbound, unsure.local) == (True, REMOTE), "without a direction the first sender counts as local"


def test_a_flow_that_began_before_the_file_counts_as_outbound() -> None:
    (_, answer, _) = Conversation(LOCAL, REMOTE).opened()
    (flow,) = flows(captured(answer.data, 1, False))
    assert (flow.outbound, flow.local) == (True, LOCAL)


def test_a_foreign_tools_process_is_inferred_and_none_at_all_unknown() -> None:
    syn = Conversation(LOCAL, REMOTE).opened()[0].data
    (named,) = flows(captured(syn, process=CapturedProcess(7, "wget"), comments=("hello",)))
    assert named.process == Process(pid=7, name="wget", source="replay", confidence=Confidence.INFERRED)
    (nameless,) = flows(captured(syn))
    assert nameless.process == Process(pid=0, source="replay", confidence=Confidence.UNKNOWN)


def test_ethernet_frames_are_opened_and_other_link_types_counted() -> None:
    syn = Conversation(LOCAL, REMOTE).opened()[0].data
    recorded = RecordedFlows()
    frame, arp = bytes(12) + b"\x08\0" + syn, bytes(12) + b"\x08\x06" + syn
    packets = [captured(frame, link_type=1), captured(arp, link_type=1), captured(syn, link_type=99), captured(b"")]
    assert list(recorded.add(packets)) == []
    assert (recorded.unread, len(list(recorded.end()))) == (3, 1)
    assert list(recorded.end()) == []


def conversation(said: bytes, *, answer: bytes = b"", inbound: bool = False) -> list[CapturedPacket]:
    ends = (REMOTE, LOCAL) if inbound else (LOCAL, REMOTE)
    talk = Conversation(*ends, first_sent=7, first_received=9)
    packets = [*talk.opened(), *talk.carried(sent=False, data=answer)]
    packets += talk.carried(sent=True, data=said)
    return [captured(packet.data, outbound=packet.sent is not inbound) for packet in packets]


@pytest.mark.parametrize("inbound", [False, True])
def test_what_whoever_opened_it_says_first_is_known(inbound: bool) -> None:
    (flow,) = flows(*conversation(hello(server_name(b"a.test")), inbound=inbound))
    assert isinstance(flow.shown, Sniffed)
    assert (flow.shown.protocol, flow.shown.name, flow.outbound) == (Protocol.TLS, "a.test", not inbound)
    (greeted,) = flows(*conversation(b"hello", answer=b"SSH-2.0-x\r\n", inbound=inbound))
    assert greeted.shown == Sniffed(protocol=Protocol.SSH)


def quic_flow(*datagrams: bytes, to: Endpoint = REMOTE) -> list[CapturedPacket]:
    local, remote = (socket.inet_aton(end.address) for end in (LOCAL, to))
    packets = []
    for said in datagrams:
        udp = struct.pack("!HHHH", LOCAL.port, to.port, 8 + len(said), 0) + said
        packets.append(captured(struct.pack("!BxHxxHBBH", 0x45, 20 + len(udp), 0, 64, 17, 0) + local + remote + udp))
    return packets


def quic_hosts(*packets: CapturedPacket | CapturedName) -> list[str | None]:
    recorded = RecordedFlows(Aes128())
    found = [*recorded.add(packets), *recorded.end()]
    assert recorded._held_bytes == 0
    return [flow.host for flow in found]


@pytest.mark.parametrize("client", quic_packets.REAL)
def test_quic_says_whom_it_asks_for(client: str) -> None:
    packets = quic_flow(*quic_packets.REAL[client])
    assert quic_hosts(*packets, *packets) == ["www.example.com"]
    assert quic_hosts(*packets[:-1]) == ([None] if len(packets) > 1 else [])
    assert [flow.host for flow in flows(*packets)] == [None], "nobody looks without a cipher"
    named = CapturedName(REMOTE.address, "said.example")
    assert quic_hosts(named, *packets) == ["said.example"]
    elsewhere = quic_flow(*quic_packets.REAL[client], to=Endpoint(address=REMOTE.address, port=4433))
    assert quic_hosts(*elsewhere) == [None]


def test_what_is_no_quic_stays_nameless_and_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quic_hosts(*quic_flow(b"no", *quic_packets.REAL["curl"])) == [None]
    monkeypatch.setattr(recorded_flows, "HELD_LIMIT_BYTES", 100)
    assert quic_hosts(*quic_flow(*quic_packets.REAL["chromium"])) == [None]


def test_of_a_flow_that_began_before_the_file_no_first_bytes_are_known() -> None:
    (flow,) = flows(*conversation(hello(server_name(b"a.test")))[1:])
    assert flow.shown is None


def test_first_bytes_that_are_not_settled_are_bounded_over_all_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_flows, "HELD_LIMIT_BYTES", 100)
    half = hello(server_name(b"a.test"))[:60]
    recorded = RecordedFlows()
    for port in range(3):
        talk = Conversation(Endpoint(address="10.0.0.1", port=port + 1), REMOTE)
        list(recorded.add(captured(packet.data) for packet in (*talk.opened(), *talk.carried(sent=True, data=half))))
    assert recorded._held_bytes == 60
    assert len(list(recorded.end())) == 3
    assert recorded._held_bytes == 0


def test_comments_are_bounded_over_all_flows_and_make_room_with_their_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_flows, "SAID_LIMIT_CHARS", 10)
    recorded = RecordedFlows()
    syn = Conversation(LOCAL, REMOTE).opened()[0].data
    (before,) = recorded.add([captured(syn, comments=("rule: a", "flow: f")), captured(syn, comments=("flow: f",))])
    assert before.said == {"rule": "a"}
    assert [flow.said for flow in recorded.end()] == [{"flow": "f"}]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_flows, "FLOWS_LIMIT", 2)
    monkeypatch.setattr(recorded_flows, "HOSTS_LIMIT", 1)
    recorded = RecordedFlows()
    names = [CapturedName("203.0.113.9", "gone.example"), CapturedName("203.0.113.8", "kept.example")]
    syns = [
        captured(Conversation(Endpoint(address="10.0.0.1", port=port), REMOTE).opened()[0].data, port)
        for port in (1, 2, 3)
    ]
    (early,) = recorded.add([*names, *syns])
    assert (early.local.port, early.host) == (1, None)
    assert [flow.local.port for flow in recorded.end()] == [2, 3]


processes = st.builds(
    Process,
    pid=st.integers(0, 2**31),
    started=st.none() | st.just("2026-11-29T00:00:00.00Z"),
    exe=st.text(st.characters(categories=["L", "N"]), min_size=1).map(lambda name: f"/usr/bin/{name}"),
    sha256=st.none() | st.just("cd" * 32),
    user=st.none() | st.text(st.characters(categories=["L", "N"]), min_size=1),
    parent=st.none()
    | st.builds(ParentProcess, pid=st.integers(0, 2**31), exe=st.none() | st.just("/usr/lib/some thing")),
    source=st.sampled_from(["connect_hook", "sock_diag"]),
    confidence=st.sampled_from(Confidence),
)


@given(processes)
def test_what_a_comment_says_of_a_process_is_read_back(process: Process) -> None:
    read, rest = told(comment.full(process, "rule: a: b"))
    assert read is not None
    assert process.exe is not None
    assert read.name == process.exe.rpartition("/")[2]
    assert {field: getattr(read, field) for field in read.__struct_fields__ if field != "name"} == {
        field: getattr(process, field) for field in process.__struct_fields__ if field != "name"
    }
    assert rest == {"rule": "a: b"}


def test_a_process_without_a_path_is_known_by_name_only() -> None:
    for name, exe in (("curl", None), (r"C:\Windows\curl.exe", r"C:\Windows\curl.exe")):
        read, _ = told(f"process: {name}\npid: 7")
        assert read is not None
        assert (read.name, read.exe, read.confidence) == (name.rpartition("\\")[2], exe, Confidence.UNKNOWN)
    unknown, _ = told("process: unknown\npid: 0")
    assert unknown is not None
    assert unknown.name is None


@given(st.text(max_size=60) | st.text(max_size=30).map(lambda text: f"process: x\npid: {text}"))
def test_no_comment_raises(text: str) -> None:
    process, _ = told(text)
    assert process is None or process.pid >= 0


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_no_packets_raise(packets: list[bytes]) -> None:
    assert len(flows(*[captured(data) for data in packets])) <= len(packets)


def test_the_layout_of_a_datagram_between_two_ports_is_one_flow() -> None:
    def datagram(source: int, destination: int) -> bytes:
        addresses = bytes([10, 0, 0, 1]), bytes([9, 9, 9, 9])
        ends = addresses if source == 5000 else addresses[::-1]
        header = struct.pack("!BxHxxHxB2x4s4s", 0x45, 28, 0, 17, *ends)
        return header + struct.pack("!HHHH", source, destination, 8, 0)

    (flow,) = flows(captured(datagram(5000, 53), 1), captured(datagram(53, 5000), 2))
    assert (flow.transport, flow.remote.port, flow.last_ns) == (Transport.UDP, 53, 2)
