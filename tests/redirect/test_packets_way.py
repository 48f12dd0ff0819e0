"""Real connections in the kernel's own packets, through filter, handle, NAT and back; others never come near."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import pydivert
import pytest
from redirect_sandbox import DEFAULT_ROUTES, ip

from mitmsec_redirect.filters import (
    EBPFDIVERT,
    FlowFilter,
    Own,
    Ports,
    Term,
    capture_filter,
    data_filter,
    everything_filter,
)
from mitmsec_redirect.fragments import Fragments
from mitmsec_redirect.nat import Added, Flow, NatTable, rewrite
from mitmsec_redirect.packet import Packet, parse

OWN = Own(gate_port=8080, upstream=Ports(first=50_000, last=51_999))
ADDRESSES = {socket.AF_INET: ("10.77.0.1", "203.0.113.9"), socket.AF_INET6: ("fd77::1", "2001:db8::9")}
WORD = bytes(range(256)) * 4000


def terms(count: int) -> list[Term]:
    return [Term(local_port=10_000 + 2 * at, remote=bytes([192, 0, 2, at % 256])) for at in range(count)]


pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


class Diverting(threading.Thread):
    """Reads a handle packet by packet, rewrites and sends: the backend's loop in its plainest form."""

    def __init__(self, text: str, table: NatTable) -> None:
        super().__init__(daemon=True)
        self.table, self.fragments, self.stop, self.left = table, Fragments(), False, list[bytes]()
        self.longest = 0
        self.handle = pydivert.Divert(text)
        self.handle.open()

    def run(self) -> None:
        while not self.stop:
            try:
                packet = self.handle.recv(timeout=0.2)
            except TimeoutError:
                continue
            raw, address = packet.raw, bytearray(bytes(packet.wd_addr))
            self.longest = max(self.longest, len(raw))
            for _, offset, _ in rewrite(raw, len(raw), address, 1, self.table):
                view = parse(raw, offset)
                assert isinstance(view, Packet)
                if not self.fragments.rewrite(raw, offset, view, address, 0, self.table, now_s=time.monotonic()):
                    self.left.append(bytes(raw))
            record = type(packet.wd_addr).from_buffer_copy(address)
            self.handle.send(pydivert.Packet(raw, wd_addr=record), recalculate_checksum=False)

    def close(self) -> None:
        self.stop = True
        self.join()
        self.handle.close()


@contextlib.contextmanager
def diverting(text: str, table: NatTable) -> Iterator[Diverting]:
    thread = Diverting(text, table)
    thread.start()
    try:
        yield thread
    finally:
        thread.close()


@pytest.fixture
def far_end(own_netns: None) -> None:
    """Origins behind a veth whose far end has no stack: what is not diverted is never answered."""
    ip("""
    neigh add 10.77.0.2 lladdr 02:00:00:00:00:02 dev va
    neigh add fd77::2 lladdr 02:00:00:00:00:02 dev va
    """)
    ip(DEFAULT_ROUTES)


def flow_of(family: socket.AddressFamily, port: int) -> tuple[Flow, Term]:
    client, origin = (socket.inet_pton(family, address) for address in ADDRESSES[family])
    flow = Flow(client=client, client_port=port, origin=origin, origin_port=443)
    return flow, Term(local_port=port, remote=origin)


def connected(family: socket.AddressFamily, port: int, timeout_s: float) -> socket.socket:
    client = socket.socket(family, socket.SOCK_STREAM)
    client.settimeout(timeout_s)
    client.bind((ADDRESSES[family][0], port))
    client.connect((ADDRESSES[family][1], 443))
    return client


@pytest.mark.parametrize("family", ADDRESSES, ids=["v4", "v6"])
def test_a_connection_to_an_origin_reaches_the_gate_and_neither_end_sees_it(
    far_end: None, family: socket.AddressFamily
) -> None:
    flow, term = flow_of(family, 40_001)
    table = NatTable(gate_port=OWN.gate_port)
    assert table.add(flow) is Added.ADDED
    listener = socket.create_server(("", OWN.gate_port), family=family)
    with listener, diverting(data_filter([term], OWN, EBPFDIVERT).text, table) as way:
        with connected(family, 40_001, 10) as client:
            accepted, peer = listener.accept()
            assert peer[:2] == (ADDRESSES[family][1], 40_001)
            local = socket.inet_pton(family, accepted.getsockname()[0])
            assert table.flow_at_gate(local=local, peer=socket.inet_pton(family, peer[0]), peer_port=peer[1]) == flow
            with accepted:
                for sender, receiver in ((client, accepted), (accepted, client)):
                    sending = threading.Thread(target=sender.sendall, args=(WORD,))
                    sending.start()
                    got = b"".join(iter_exactly(receiver, len(WORD)))
                    sending.join()
                    assert got == WORD
    assert way.left == []
    assert way.longest > 1500, "GSO packets were among them"


def iter_exactly(receiver: socket.socket, size: int) -> Iterator[bytes]:
    receiver.settimeout(20)
    while size:
        piece = receiver.recv(min(size, 65_536))
        assert piece
        size -= len(piece)
        yield piece


def test_a_flow_that_is_matched_but_not_in_the_table_passes_untouched(far_end: None) -> None:
    """The filter is wider than the table: both SYNs are seen; the one of no flow goes on to its origin, unanswered."""
    flow, _ = flow_of(socket.AF_INET, 40_001)
    table = NatTable(gate_port=OWN.gate_port)
    table.add(flow)
    listener = socket.create_server(("", OWN.gate_port))
    with listener, diverting(everything_filter(OWN, EBPFDIVERT).text, table) as way:
        connected(socket.AF_INET, 40_001, 10).close()
        with pytest.raises(TimeoutError):
            connected(socket.AF_INET, 40_002, 1)
    assert way.left
    assert {view.source_port for raw in way.left if isinstance(view := parse(raw), Packet)} == {40_002}


@pytest.mark.parametrize(
    ("made_for", "matching_port"),
    [
        (data_filter(terms(61), OWN, EBPFDIVERT), OWN.gate_port),
        (data_filter(terms(600), OWN, EBPFDIVERT), 10_002),
        (capture_filter(terms(20), OWN, EBPFDIVERT), None),
        (capture_filter(terms(60), OWN, EBPFDIVERT), 10_002),
        (everything_filter(OWN, EBPFDIVERT), 40_000),
    ],
    ids=["data-flows", "data-ranges", "capture-flows", "capture-ranges", "everything"],
)
def test_the_kernel_judges_so_others_packets_never_come_to_user_space(
    far_end: None, made_for: FlowFilter, matching_port: int | None
) -> None:
    with pydivert.Divert(made_for.text, flags=pydivert.Flag.SNIFF) as handle:
        plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        plain.bind(("", 50_500))
        for _ in range(50):
            plain.sendto(b"x" * 300, (ADDRESSES[socket.AF_INET][1], 9))
        with pytest.raises(TimeoutError):
            connected(socket.AF_INET, 50_501, 0.3)
        seen = handle.stats()
        assert seen["sniffed"] == 0, seen
        if matching_port is not None:
            with pytest.raises(TimeoutError):
                connected(socket.AF_INET, matching_port, 0.3)
            assert handle.stats()["sniffed"] > 0
