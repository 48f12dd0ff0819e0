"""Handles of pydivert's shared libraries, by whole batches, through one interface for both systems.

pydivert's own batch calls are loops of single ones, and on Windows its `recv(timeout)` cancels without waiting. So the
libraries are called straight. Packets of a batch stand back to back, their address records beside them:

    Batch ─ bytes      │ packet │ packet │ …     at most PACKETS_MOST
          └ addresses  │ 80 B   │ 80 B   │ …

Here: what both have in common, and libebpfdivert (pydivert 4, Linux). `windivert_dll`: WinDivert64.dll (pydivert 3.1).
A handle is used by one receiving thread; any thread may send, if it brings its own batch.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from abc import ABC, abstractmethod
from ctypes import byref, c_char, c_int, c_uint32, c_uint64, c_void_p
from enum import IntEnum, IntFlag
from typing import Any, Final

from mitmsec.core.model import Value
from mitmsec_redirect.divert_records import RECORD_BYTES, Layer
from mitmsec_redirect.packet import Malformed, length_at

PACKETS_MOST: Final = 255  # WINDIVERT_BATCH_MAX
PACKET_BYTES_MOST: Final = 65_575  # WINDIVERT_MTU_MAX
BATCH_BYTES: Final = 1 << 18  # what stays in a core's cache: with 4 MB a byte of bulk costs an eighth more
DIVIDED_ABOVE: Final = 16_384  # at least: no interface's MTU grows that far while a handle is open
SIOCGIFMTU: Final = 0x8921  # netdevice(7)
_INTERFACE: Final = struct.Struct("16si20x")
SHUTDOWN_RECEIVING, SHUTDOWN_BOTH = 1, 3
# handle, packets, their size, how many bytes came, address records, how many packets came, milliseconds
_RECV_EX: Final = (c_void_p, c_void_p, c_uint32, c_void_p, c_void_p, c_void_p, c_int)
_SEND_EX: Final = (c_void_p, c_void_p, c_uint32, c_void_p, c_void_p, c_uint32)


class HandleFlag(IntFlag):
    """How a handle is opened."""

    DIVERT = 0
    SNIFF = 1
    RECEIVE_ONLY = 4
    SEND_ONLY = 8


class Setting(IntEnum):
    """What can be set of a handle's queue."""

    LENGTH = 0  # packets
    AGE_MS = 1
    SIZE_BYTES = 2


QUEUE_MOST: Final = {Setting.LENGTH: 16_384, Setting.AGE_MS: 16_000, Setting.SIZE_BYTES: 32 << 20}


class HandleShut(Exception):
    """The handle was shut for receiving, and everything that had been in its queue was received."""


class HandleRefused(OSError):
    """The system does not give the handle: privilege, driver or filter."""


class HandleStats(Value, frozen=True):
    """Since the handle was opened. Windows counts nothing of this."""

    taken: int = 0  # into the queue, from the kernel
    lost: int = 0  # on the way to us
    passed: int = 0  # went their way because there was no room, or because they were too long

    def __add__(self, other: HandleStats) -> HandleStats:
        return HandleStats(self.taken + other.taken, self.lost + other.lost, self.passed + other.passed)


class Batch:
    """Room for packets and their address records. Not for two threads at once."""

    def __init__(self, size_bytes: int = BATCH_BYTES, packets: int = PACKETS_MOST) -> None:
        self.bytes = bytearray(size_bytes)
        self.addresses = bytearray(RECORD_BYTES * packets)
        self.packets = packets
        self.view, self.address_view = memoryview(self.bytes), memoryview(self.addresses)
        self.c_bytes = (c_char * size_bytes).from_buffer(self.bytes)
        self.c_addresses = (c_char * len(self.addresses)).from_buffer(self.addresses)
        self.bytes_at, self.addresses_at = ctypes.addressof(self.c_bytes), ctypes.addressof(self.c_addresses)
        self.c_length, self.c_count = c_uint32(), c_uint32()  # what a call answers; made once, for small batches' sake
        self.length_at, self.count_at = ctypes.addressof(self.c_length), ctypes.addressof(self.c_count)

    def put(
        self, at: int, offset: int, packet: bytes | bytearray | memoryview, address: bytes | bytearray | memoryview
    ) -> int:
        """Make `packet` the one at place `at`, its bytes from `offset` on. The offset of the next."""
        end = offset + len(packet)
        self.bytes[offset:end] = packet
        self.addresses[at * RECORD_BYTES : (at + 1) * RECORD_BYTES] = address
        return end


class Handle(ABC):
    """An open handle."""

    divided_above = PACKET_BYTES_MOST
    """Longer packets are sent in pieces, with checksums that the system computes; their own ones do not matter."""

    @abstractmethod
    def receive(self, batch: Batch, timeout_s: float) -> tuple[int, int]:
        """Fill `batch`: how many packets, how many bytes; (0, 0) when nothing came in time. Raises HandleShut."""

    @abstractmethod
    def send(self, batch: Batch, count: int, length: int) -> int:
        """Send the first `count` packets, in `length` bytes. How many the system did not take."""

    @abstractmethod
    def set(self, setting: Setting, value: int) -> None:
        """Raises OSError for a value that the library does not allow."""

    @abstractmethod
    def shutdown(self) -> None:
        """Take nothing more from the kernel; what was taken can still be received, and anything sent."""

    @abstractmethod
    def stats(self) -> HandleStats:
        """What was counted so far."""

    @abstractmethod
    def close(self) -> None:
        """What is still in the queue is lost on Linux, so shut down and receive it first. Idempotent."""


def open_handle(
    text: str, layer: Layer, *, priority: int = 0, flags: HandleFlag = HandleFlag.DIVERT, ring_bytes: int = 0
) -> Handle:
    """A handle with the largest queue that there is. Raises HandleRefused; ValueError for a filter that is none.

    On Linux NETWORK handles see the interfaces that the calling thread's network namespace has now; SOCKET handles the
    whole machine. `ring_bytes` (Linux): the way to the queue, 0 is the library's own choice.
    """
    if sys.platform == "win32":
        from mitmsec_redirect.windivert_dll import open_windivert

        handle: Handle = open_windivert(text, layer, priority=priority, flags=flags)
    else:
        handle = EbpfHandle.open(text, layer, priority=priority, flags=flags, ring_bytes=ring_bytes)
    try:
        for setting, value in QUEUE_MOST.items():
            handle.set(setting, value)
    except BaseException:
        handle.close()
        raise
    return handle


class EbpfHandle(Handle):
    """libebpfdivert. Negative results are errnos; what WinDivert counts in bytes it counts in records."""

    def __init__(self, library: Any, handle: int) -> None:
        self._library = library
        self._handle: int | None = handle
        self._recv_ex = _by_number(library, "ebpfdivert_recv_ex", _RECV_EX)
        self._send_ex = _by_number(library, "ebpfdivert_send_ex", _SEND_EX)

    @classmethod
    def open(cls, text: str, layer: Layer, *, priority: int, flags: HandleFlag, ring_bytes: int) -> EbpfHandle:
        from pydivert.bpf import OpenOpts, libebpfdivert

        if libebpfdivert is None:
            raise HandleRefused(errno.ENOENT, "pydivert's libebpfdivert is not there or cannot be loaded")
        options = OpenOpts(sz=ctypes.sizeof(OpenOpts), ifnames=None, ring_bytes=ring_bytes)
        ctypes.set_errno(0)
        handle = libebpfdivert.ebpfdivert_open(text.encode(), int(layer), priority, int(flags), byref(options))
        if not handle:
            code = ctypes.get_errno() or errno.EIO
            _check_filter(libebpfdivert, text, layer)
            raise HandleRefused(code, f"open a {layer.name} handle: {os.strerror(code)}")
        opened = cls(libebpfdivert, handle)
        opened.divided_above = max(_greatest_mtu(), DIVIDED_ABOVE)
        return opened

    def receive(self, batch: Batch, timeout_s: float) -> tuple[int, int]:
        batch.c_count.value = batch.packets
        result = self._recv_ex(
            self._handle or self._open,
            batch.bytes_at,
            len(batch.bytes),
            batch.length_at,
            batch.addresses_at,
            batch.count_at,
            int(timeout_s * 1000),
        )
        if result == -errno.EAGAIN:
            return 0, 0
        if result == -errno.ESHUTDOWN:
            raise HandleShut
        _checked(result, "receive packets")
        return batch.c_count.value, batch.c_length.value

    def send(self, batch: Batch, count: int, length: int) -> int:
        """The library stops at the first packet that it cannot send; the others are sent all the same."""
        at = offset = refused = 0
        handle, sent, sent_at = self._handle or self._open, batch.c_length, batch.length_at
        while at < count:
            sent.value = 0
            records_at = batch.addresses_at + at * RECORD_BYTES
            self._send_ex(handle, batch.bytes_at + offset, length - offset, sent_at, records_at, count - at)
            end = offset + sent.value
            if end >= length:
                break
            while offset < end:
                offset, at = offset + _length(batch, offset, length), at + 1
            refused += 1
            offset, at = offset + _length(batch, offset, length), at + 1
        return refused

    def set(self, setting: Setting, value: int) -> None:
        _checked(self._library.ebpfdivert_set_param(self._open, int(setting), value), f"set {setting.name}")

    def shutdown(self) -> None:
        _checked(self._library.ebpfdivert_shutdown(self._open, SHUTDOWN_RECEIVING), "shut a handle")

    def stats(self) -> HandleStats:
        from pydivert.bpf import STAT_NAMES

        values = (c_uint64 * len(STAT_NAMES))()
        self._library.ebpfdivert_get_handle_stats(self._open, values, len(STAT_NAMES))
        told = dict(zip(STAT_NAMES, values, strict=True))
        return HandleStats(
            taken=told["diverted"] + told["sniffed"],
            lost=told["queue_full"],
            passed=told["ringbuf_full"] + told["too_big"],
        )

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self._library.ebpfdivert_close(handle)

    @property
    def _open(self) -> int:
        if self._handle is None:
            raise OSError(errno.EBADF, "the handle is closed")
        return self._handle


def _greatest_mtu() -> int:
    """Of the interfaces but loopback, which the calling thread's network namespace has now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        return max((_mtu(sock, name) for _, name in socket.if_nameindex() if name != "lo"), default=0)


def _mtu(sock: socket.socket, name: str) -> int:
    """0: it has gone."""
    import fcntl  # which Windows lacks

    try:
        answer = fcntl.ioctl(sock, SIOCGIFMTU, _INTERFACE.pack(name.encode(), 0))
    except OSError:
        return 0
    return int(_INTERFACE.unpack(answer)[1])


def _by_number(library: Any, name: str, types: tuple[type, ...]) -> Any:
    """The function, as one that takes addresses as numbers: pointers of a type cost more to make than to follow."""
    function = ctypes.CDLL.__getitem__(library, name)
    function.argtypes, function.restype = types, c_int
    return function


def _length(batch: Batch, offset: int, end: int) -> int:
    """Of the packet there; of what is none, all the rest: the library cannot tell where another begins either."""
    length = length_at(batch.bytes, offset, end)
    return end - offset if isinstance(length, Malformed) else length


def _checked(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")


def _check_filter(library: Any, text: str, layer: Layer) -> None:
    """Raises ValueError if it was the filter."""
    message, position = ctypes.c_char_p(), c_uint32(0)
    if library.ebpfdivert_helper_compile_filter(text.encode(), int(layer), byref(message), byref(position)) != 0:
        why = message.value.decode(errors="replace") if message.value else "invalid"
        raise ValueError(f"the filter is none at {position.value} ({why}): {text}")


def reap() -> None:
    """Linux: detach what handles of processes that died without closing them have left on network interfaces.

    The library finds them in its registry, which is on a bpffs at /sys/fs/bpf; without one it finds nothing.
    """
    if sys.platform != "win32":
        from pydivert.bpf import libebpfdivert

        if libebpfdivert is not None:
            libebpfdivert.ebpfdivert_unregister()
