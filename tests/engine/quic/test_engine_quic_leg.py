"""A leg on its socket: what comes, what goes, and how it ends."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl

import pytest
import quic_packets
import trustme
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given, settings
from hypothesis import strategies as st
from quic_world import story

from mitmsec.core.quic_packets import initials
from mitmsec.engine.quic.connection import Connection
from mitmsec.engine.quic.leg import PEER, QuicFailed, QuicLeg, failure_of


def pair() -> tuple[socket.socket, QuicLeg]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    settings = QuicConfiguration(alpn_protocols=["h3"], server_name="a.test", verify_mode=ssl.CERT_NONE)
    connection = Connection(settings)
    leg = QuicLeg(theirs, asyncio.get_running_loop(), connection)
    connection.connect(PEER, asyncio.get_running_loop().time())
    return ours, leg


@story
async def test_a_datagram_is_a_packet_and_is_counted_and_what_is_lost_is_sent_again() -> None:
    ours, leg = pair()
    shaking = asyncio.ensure_future(leg.shake())
    first = await asyncio.get_running_loop().sock_recv(ours, 65535)
    assert len(first) == leg.sent == 1200
    again = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(ours, 65535), 5)
    assert len(again) == 1200
    ours.send(os.urandom(64))
    ours.send(b"\xc0 no packet of anybody's")
    await asyncio.sleep(0.05)
    assert leg.received == 64 + 24
    shaking.cancel()
    leg.release()
    leg.release()
    leg.flush()
    assert leg.closed
    ours.close()


@story
async def test_the_end_of_its_socket_is_its_end() -> None:
    ours, leg = pair()
    shaking = asyncio.ensure_future(leg.shake())
    await asyncio.sleep(0.01)
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises(QuicFailed, match="let go") as failed:
        await shaking
    assert failed.value.by_peer
    with pytest.raises(QuicFailed):
        await leg.shake()
    ours.setblocking(True)
    ours.recv(65535)
    leg.close(0x100)
    assert ours.recv(65535)[:1] >= b"\xc0"  # its peer is told all the same
    assert ours.recv(65535) == b""
    ours.close()


@story
async def test_who_closes_says_so_once() -> None:
    ours, leg = pair()
    leg.flush()
    ours.recv(65535)
    leg.close(0x100, "done")
    leg.close(0x100)
    assert ours.recv(65535)[:1] >= b"\xc0"
    assert ours.recv(65535) == b""
    ours.close()


@story
async def test_an_end_that_does_not_take_loses_datagrams_and_nothing_else() -> None:
    ours, leg = pair()
    ours.close()
    leg.flush()
    assert (leg.sent, leg.closed) == (0, False)
    leg.release()


LEAF = trustme.CA().issue_cert("a.test")


def server() -> QuicConfiguration:
    far = QuicConfiguration(is_client=False, alpn_protocols=["h3"])
    far.certificate = x509.load_pem_x509_certificate(LEAF.cert_chain_pems[0].bytes())
    far.private_key = load_pem_private_key(LEAF.private_key_pem.bytes(), None)
    return far


FRAMES = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.builds(lambda at, data: quic_packets.crypto(at, data), st.integers(0, 70_000), st.binary(max_size=300)),
        st.sampled_from([b"\x01", b"\x02\x00\x00\x00\x00", b"\x1c\x00\x00\x00", b"\x06\x00\x04\x01\x00\x00\x00"]),
    ),
    max_size=4,
)


@pytest.mark.parametrize("name", quic_packets.REAL)
def test_hellos_of_browsers_are_answered(name: str) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        destination = next(initials(quic_packets.REAL[name][0])).destination
        leg = QuicLeg(theirs, asyncio.get_running_loop(), Connection(server(), destination))
        for datagram in quic_packets.REAL[name]:
            leg.heard(datagram)
        leg.flush()
        assert (leg.failed, leg.connection.tls.alpn_negotiated) == (None, "h3")
        assert leg.sent >= 1200
        leg.close(0x100)
        ours.close()

    asyncio.run(main())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(FRAMES, st.binary(min_size=1, max_size=1400)), min_size=1, max_size=4))
def test_whatever_a_client_sends_is_understood_or_ends_the_leg_and_nothing_else(
    sent: list[list[bytes] | bytes],
) -> None:
    """Frames are sealed as a client's first packets are."""

    async def main() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        leg = QuicLeg(theirs, asyncio.get_running_loop(), Connection(server(), quic_packets.ID))
        for number, one in enumerate(sent):
            sealed = one if isinstance(one, bytes) else quic_packets.initial(b"".join(one) or b"\0", number)
            leg.heard(sealed.ljust(1200, b"\0"))
            leg.flush()
        leg.close(0x100)
        assert leg.closed
        ours.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("code", "frame", "reason", "alert", "text"),
    [
        (0x12A, 6, "", 42, "error 0x12a"),
        (0x12A, None, "", None, "error 0x12a"),
        (0x100, None, "", None, "error 0x100"),
        (0, 0, "", None, ""),
        (0x1, 0, "Idle timeout", None, "Idle timeout"),
    ],
)
def test_what_an_end_says(code: int, frame: int | None, reason: str, alert: int | None, text: str) -> None:
    """An application's error has no frame, and is no alert of TLS."""
    failed = failure_of(ConnectionTerminated(code, frame, reason), by_peer=True)
    assert (failed.alert, str(failed), failed.by_peer) == (alert, text, True)


@story
async def test_a_timer_that_breaks_ends_the_leg() -> None:
    ours, leg = pair()
    failed: list[QuicFailed] = []
    leg.on_failed = failed.append
    leg.flush()

    def breaks(now: float) -> None:
        raise AssertionError

    leg.connection.handle_timer = breaks  # type: ignore[method-assign]
    async with asyncio.timeout(10):
        while not failed:
            await asyncio.sleep(0.01)
    assert str(failed[0]) == "cannot go on: AssertionError"
    leg.release()
    ours.close()
