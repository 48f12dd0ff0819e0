"""Logged UDP: from the kernel to a reader without privilege, and made up."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nft_stage import diverting, needs_nft
from redirect_sandbox import Agent, Sandbox

from mitmsec.core.model import Endpoint, Quic
from mitmsec_redirect import nflog
from mitmsec_redirect.nfnetlink import attribute
from mitmsec_redirect.nft_udp import NftUdp
from mitmsec_redirect.nft_udp_rules import DNS_BYTES, Ends
from mitmsec_redirect.udp_log import DnsLog, FirstDatagram, dns_packets, first_datagrams

MOST = DNS_BYTES - 28  # of an IPv4 datagram
UNPRIVILEGED = """
import os, sys
from mitmsec_redirect.udp_log import DnsLog
fd = int(sys.argv[1])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print([packet.payload for packet in DnsLog(fd).drain()])
"""


@pytest.fixture
def udp(sandbox: Sandbox) -> Iterator[NftUdp]:
    with diverting(sandbox, quic=Quic.BYPASS) as backend:
        assert backend.udp is not None
        yield backend.udp


@pytest.fixture
def log(udp: NftUdp) -> Iterator[DnsLog]:
    made = DnsLog(os.dup(udp.names_fd))
    yield made
    made.close()


@pytest.mark.root
@needs_nft
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_questions_and_answers_are_copied_in_their_order(sandbox: Sandbox, log: DnsLog, address: str) -> None:
    family = 10 if ":" in address else 2
    server, client = sandbox.agent(inside=False), sandbox.agent()
    server(f"s = socket.socket({family}, 2); s.bind(({address!r}, 53))")
    client(f"c = socket.socket({family}, 2); c.settimeout(5); c.connect(({address!r}, 53)); c.send(b'question')")
    server("d, f = s.recvfrom(99); s.sendto(b'answer to ' + d, f)")
    assert client("answer = c.recv(99).decode()") == {"answer": "answer to question"}
    asked, answered = log.drain()
    assert (asked.sent, asked.payload, answered.sent, answered.payload) == (
        True,
        b"question",
        False,
        b"answer to question",
    )
    assert (asked.local, asked.server) == (answered.local, answered.server)
    assert asked.server == Endpoint.of(address, 53)
    assert log.drain() == []


@pytest.mark.root
@needs_nft
def test_other_ports_others_programs_and_what_is_too_long_are_not_copied(sandbox: Sandbox, log: DnsLog) -> None:
    sandbox.agent(inside=False)("u = socket.socket(2, 2); u.sendto(b'x', ('127.0.0.1', 53))")
    agent = sandbox.agent()
    agent("u = socket.socket(2, 2); u.sendto(b'x', ('127.0.0.1', 54)); u.sendto(b'x', ('127.0.0.1', 5353))")
    agent(f"for n in (0, {MOST}, {MOST + 1}): u.sendto(b'x' * n, ('127.0.0.1', 53))")
    assert [len(packet.payload) for packet in log.drain()] == [0, MOST]


@pytest.mark.root
@needs_nft
def test_who_reads_needs_no_privilege_and_the_next_reads_on(sandbox: Sandbox, udp: NftUdp, log: DnsLog) -> None:
    agent = sandbox.agent()
    agent("u = socket.socket(2, 2); u.sendto(b'first', ('127.0.0.1', 53))")
    fd = os.dup(udp.names_fd)
    os.set_inheritable(fd, True)
    command = [sys.executable, "-c", UNPRIVILEGED, str(fd)]
    done = subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, timeout=30)
    os.close(fd)
    assert done.stdout == "[b'first']\n", done.stderr
    agent("u.sendto(b'second', ('127.0.0.1', 53))")
    assert [packet.payload for packet in log.drain()] == [b"second"]


@pytest.mark.root
@needs_nft
def test_what_the_log_cannot_take_passes_all_the_same(sandbox: Sandbox, log: DnsLog) -> None:
    log._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    agent: Agent = sandbox.agent()
    told = agent("u = socket.socket(2, 2); answer = sum(u.sendto(b'x', ('127.0.0.1', 53)) for _ in range(200))")
    assert told == {"answer": 200}
    assert 0 < len(log.drain()) < 200
    agent("u.sendto(b'last', ('127.0.0.1', 53))")
    assert [packet.payload for packet in log.drain()] == [b"last"]


# --- made up ----------------------------------------------------------------------------------------------------------
def datagram(*attributes: bytes) -> bytes:
    payload = struct.pack("!BBH", socket.AF_INET, 0, 7) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(payload), nflog.ULOG << 8 | nflog.PACKET, 0, 0, 0) + payload


def hooked(hook: int) -> bytes:
    return attribute(nflog.HEADER, struct.pack("!HBx", 0x0800, hook))


def packet(protocol: int = 17, payload: bytes = b"") -> bytes:
    size = 28 + len(payload)
    head = struct.pack("!BxHxxHxB2x4s4s", 0x45, size, 0, protocol, bytes([10, 0, 0, 1]), bytes([9, 9, 9, 9]))
    return attribute(nflog.PAYLOAD, head + struct.pack("!HHHH", 4000, 53, size - 20, 0) + payload)


HERE, THERE = Endpoint.of("10.0.0.1", 4000), Endpoint.of("9.9.9.9", 53)


def test_the_hook_says_which_end_is_the_programs() -> None:
    uid = attribute(nflog.UID, b"\0\0\3\xe8")
    told = datagram(hooked(3), packet(), uid, attribute(nflog.INTERFACE_OUT, b"\0\0\0\7"))
    assert list(first_datagrams(told)) == [FirstDatagram(True, Ends(HERE, THERE), 1000, interface=7)]
    assert list(first_datagrams(datagram(hooked(1), packet()))) == [FirstDatagram(False, Ends(THERE, HERE), None)]
    (asked,) = dns_packets(datagram(hooked(3), packet(payload=b"question")))
    assert (asked.sent, asked.local, asked.server, asked.payload) == (True, HERE, THERE, b"question")
    (answered,) = dns_packets(datagram(hooked(1), packet(payload=b"answer")))
    assert (answered.sent, answered.local, answered.server) == (False, THERE, HERE)


@pytest.mark.parametrize(
    "other",
    [
        datagram(hooked(2), packet()),  # forwarded
        datagram(packet()),
        datagram(hooked(3)),
        datagram(attribute(nflog.HEADER, b""), packet()),
        datagram(hooked(3), packet())[:-4],
    ],
)
def test_what_is_none_of_ours_does_not_count(other: bytes) -> None:
    assert (list(first_datagrams(other)), list(dns_packets(other))) == ([], [])


def test_what_is_no_udp_is_no_flow() -> None:
    assert list(first_datagrams(datagram(hooked(3), packet(protocol=6)))) == []


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda data: datagram(hooked(3), data)))
def test_no_bytes_raise(data: bytes) -> None:
    assert all(one.sent for one in first_datagrams(data))
    assert all(one.sent for one in dns_packets(data))
