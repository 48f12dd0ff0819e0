"""Handles of the real library, on the real kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest
from pydivert.bpf import libebpfdivert

from mitmsec_redirect import divert_library
from mitmsec_redirect.divert_library import Batch, EbpfHandle, Handle, HandleFlag, HandleRefused, HandleShut, Setting
from mitmsec_redirect.divert_library import open_handle as opened
from mitmsec_redirect.divert_records import FLAGS_AT, RECORD_BYTES, Layer, RecordFlag, SocketEvent, parse_connect
from mitmsec_redirect.packet import Packet, split

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_netns")]

FILTER = "outbound and udp.DstPort == 9"


def open_handle(text: str = FILTER, **options: int) -> contextlib.closing[Handle]:
    return contextlib.closing(opened(text, Layer.NETWORK, priority=5, **options))


@pytest.fixture
def sender() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.bind(("10.77.0.1", 0))
        yield sock


def emit(sender: socket.socket, *words: bytes) -> None:
    """Out by `va`, to whoever is there."""
    for word in words:
        sender.sendto(word, ("10.77.0.255", 9))


def payloads(batch: Batch, length: int) -> list[bytes]:
    found = []
    for offset, size, packet in split(batch.view, length):
        assert isinstance(packet, Packet)
        found.append(bytes(batch.view[offset + packet.transport + 8 : offset + size]))
    return found


def test_packets_come_in_batches_and_in_order(sender: socket.socket) -> None:
    with open_handle() as handle:
        batch, words = Batch(), [str(number).encode() for number in range(100)]
        emit(sender, *words)
        seen: list[bytes] = []
        while len(seen) < 100:
            count, length = handle.receive(batch, 5)
            assert count
            seen += payloads(batch, length)
        assert seen == words
        assert batch.addresses[FLAGS_AT] & RecordFlag.OUTBOUND
        assert handle.receive(batch, 0) == (0, 0)
        assert handle.receive(batch, 0.01) == (0, 0)
        assert handle.stats().taken == 100


def test_a_batch_is_never_larger_than_its_room(sender: socket.socket) -> None:
    with open_handle() as handle:
        emit(sender, *[bytes(1000)] * 20)
        small = Batch(3000, packets=8)
        assert handle.receive(small, 5) == (2, 2056)
        few = Batch(packets=3)
        assert handle.receive(few, 5) == (3, 3084)


def test_what_is_sent_back_goes_where_it_was_going(sender: socket.socket) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as far, open_handle() as handle:
        far.bind(("vb", 0x0800))
        far.settimeout(5)
        emit(sender, b"one", b"two")
        batch, count, length = Batch(), 0, 0
        count, length = handle.receive(batch, 5)
        if count == 1:
            more = Batch()
            handle.receive(more, 5)
            length = batch.put(1, length, more.bytes[:31], bytes(more.addresses[:RECORD_BYTES]))
        assert handle.send(batch, 2, length) == 0
        assert [far.recv(2048)[-3:] for _ in range(2)] == [b"one", b"two"]


def test_a_packet_that_cannot_be_sent_does_not_hold_up_those_after_it(sender: socket.socket) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as far, open_handle() as handle:
        far.bind(("vb", 0x0800))
        far.settimeout(5)
        emit(sender, b"one")
        taken, batch = Batch(), Batch()
        _, length = handle.receive(taken, 5)
        packet, good = bytes(taken.bytes[:length]), bytes(taken.addresses[:RECORD_BYTES])
        bad = good[:16] + (9999).to_bytes(4, "little") + good[20:]  # no such interface
        offset = 0
        for at, address in enumerate([bad, good, bad, good, bad]):
            offset = batch.put(at, offset, packet, address)
        assert handle.send(batch, 5, offset) == 3
        assert [far.recv(2048)[-3:] for _ in range(2)] == [b"one", b"one"]


def test_what_is_no_packet_is_not_sent_and_that_is_counted(sender: socket.socket) -> None:
    with open_handle() as handle:
        batch = Batch()
        length = batch.put(0, 0, b"\xff" * 40, bytes(RECORD_BYTES))
        assert handle.send(batch, 1, length) == 1
        assert handle.send(batch, 2, length) == 1


def test_a_shut_handle_gives_what_it_took_and_then_says_so(sender: socket.socket) -> None:
    with open_handle() as handle:
        emit(sender, b"1", b"2", b"3")
        handle.shutdown()
        emit(sender, b"4")
        batch, seen = Batch(), []
        while len(seen) < 3:
            seen += payloads(batch, handle.receive(batch, 1)[1])
        assert seen == [b"1", b"2", b"3"]
        with pytest.raises(HandleShut):
            handle.receive(batch, 1)


def test_shutting_wakes_who_waits() -> None:
    with open_handle() as handle:
        woken = threading.Event()

        def wait() -> None:
            with contextlib.suppress(HandleShut):
                handle.receive(Batch(), 30)
            woken.set()

        thread = threading.Thread(target=wait)
        thread.start()
        handle.shutdown()
        assert woken.wait(5)
        thread.join()


def test_what_finds_no_room_is_counted(sender: socket.socket) -> None:
    with open_handle(ring_bytes=4096) as handle:
        emit(sender, *[bytes(1000)] * 50)
        assert handle.stats().passed > 0
    with open_handle() as handle:
        handle.set(Setting.LENGTH, 32)
        emit(sender, *[b"x"] * 100)
        batch = Batch(packets=1)
        handle.receive(batch, 5)
        assert handle.stats().lost > 0


def test_a_value_beyond_the_librarys_limits_is_refused() -> None:
    with open_handle() as handle, pytest.raises(OSError, match="set LENGTH: Invalid argument"):
        handle.set(Setting.LENGTH, 1 << 30)


def test_who_connects_is_told_with_the_sockets_cookie() -> None:
    flags = HandleFlag.SNIFF | HandleFlag.RECEIVE_ONLY
    with (
        contextlib.closing(opened("event == CONNECT and tcp", Layer.SOCKET, flags=flags)) as handle,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        cookie = int.from_bytes(client.getsockopt(socket.SOL_SOCKET, 57, 8), "little")
        batch, found = Batch(), []
        while not found:
            count, _ = handle.receive(batch, 5)
            assert count
            records = [bytes(batch.address_view[at * RECORD_BYTES :][:RECORD_BYTES]) for at in range(count)]
            assert {record[9] for record in records} == {SocketEvent.CONNECT}
            events = [parse_connect(batch.address_view, at, has_cookie=True) for at in range(count)]
            found = [event for event in events if event is not None and event.cookie == cookie]
        assert found[0].pid == os.getpid()


def test_what_the_system_divides_is_longer_than_any_interface_takes() -> None:
    with open_handle() as handle:
        assert handle.divided_above == divert_library.DIVIDED_ABOVE
    subprocess.run(["ip", "link", "set", "va", "mtu", "40000"], check=True)
    with open_handle() as handle:
        assert handle.divided_above == 40000


def test_a_filter_that_is_none_is_told_with_the_place() -> None:
    with pytest.raises(ValueError, match="the filter is none at 7"):
        opened("tcp and", Layer.NETWORK)
    with pytest.raises(ValueError, match="the filter is none at 0"):
        opened("tpc", Layer.SOCKET)


def test_a_handle_that_the_library_does_not_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HandleRefused) as told:
        opened("tcp", Layer.SOCKET, flags=HandleFlag.SNIFF)  # which must be RECEIVE_ONLY too
    assert told.value.errno == errno.EINVAL
    monkeypatch.setattr("pydivert.bpf.libebpfdivert", None)
    with pytest.raises(HandleRefused, match="libebpfdivert is not there"):
        opened("tcp", Layer.NETWORK)
    divert_library.reap()


def test_a_handle_whose_queue_cannot_be_set_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[EbpfHandle] = []
    close = EbpfHandle.close
    monkeypatch.setattr(EbpfHandle, "close", lambda self: (closed.append(self), close(self))[1])
    monkeypatch.setattr(divert_library, "QUEUE_MOST", {Setting.AGE_MS: 0})
    with pytest.raises(OSError, match="set AGE_MS"):
        opened(FILTER, Layer.NETWORK, priority=5)
    assert len(closed) == 1


def test_a_closed_handle_does_nothing_and_can_be_closed_again() -> None:
    with open_handle() as handle:
        handle.close()
        with pytest.raises(OSError, match="the handle is closed"):
            handle.receive(Batch(), 0)


def test_reaping_leaves_what_lives(sender: socket.socket) -> None:
    assert libebpfdivert is not None
    with open_handle() as handle:
        divert_library.reap()
        emit(sender, b"x")
        assert handle.receive(Batch(), 5)[0] == 1
