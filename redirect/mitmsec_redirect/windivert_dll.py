"""Handles of WinDivert64.dll as pydivert 3.1 brings it: overlapped, and never cancelled.

A cancelled request whose buffer is used again loses packets and overwrites memory. So a request that has not been
answered in time stays, with its batch, until it is: the next `receive` goes on waiting for it. A handle is shut by
`WinDivertShutdown`, which answers the request; only then is it closed.

Lengths of address records are in bytes. Nothing here has been run on Windows; tests/redirect/test_windivert_dll.py
holds the calls against the documented conventions with a library object of its own, and opens handles of the real DLL
under Wine, as far as that comes without its driver.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_int, c_int16, c_uint32, c_uint64, c_void_p
from typing import Any, Final

from mitmsec_redirect.divert_library import (
    SHUTDOWN_BOTH,
    SHUTDOWN_RECEIVING,
    Batch,
    Handle,
    HandleFlag,
    HandleRefused,
    HandleShut,
    HandleStats,
    Setting,
)
from mitmsec_redirect.divert_records import RECORD_BYTES, Layer

INVALID_HANDLE: Final = c_void_p(-1).value
ERROR_INVALID_PARAMETER, ERROR_NO_DATA, ERROR_IO_PENDING = 87, 232, 997
WAIT_OBJECT_0, WAIT_TIMEOUT, INFINITE = 0, 0x102, 0xFFFFFFFF


class Overlapped(ctypes.Structure):
    """OVERLAPPED of minwinbase.h."""

    _fields_ = (
        ("internal", c_void_p),
        ("internal_high", c_void_p),
        ("offset", c_uint32),
        ("offset_high", c_uint32),
        ("event", c_void_p),
    )


WINDIVERT: Final[dict[str, tuple[list[Any], Any]]] = {  # arguments and result, windivert.h
    "WinDivertOpen": ([c_char_p, c_int, c_int16, c_uint64], c_void_p),
    "WinDivertRecvEx": (
        [c_void_p, c_void_p, c_uint32, POINTER(c_uint32), c_uint64, c_void_p, POINTER(c_uint32), POINTER(Overlapped)],
        c_int,
    ),
    "WinDivertSendEx": (
        [c_void_p, c_void_p, c_uint32, POINTER(c_uint32), c_uint64, c_void_p, c_uint32, POINTER(Overlapped)],
        c_int,
    ),
    "WinDivertShutdown": ([c_void_p, c_int], c_int),
    "WinDivertClose": ([c_void_p], c_int),
    "WinDivertSetParam": ([c_void_p, c_int, c_uint64], c_int),
}
KERNEL32: Final[dict[str, tuple[list[Any], Any]]] = {
    "CreateEventW": ([c_void_p, c_int, c_int, c_void_p], c_void_p),
    "CloseHandle": ([c_void_p], c_int),
    "WaitForSingleObject": ([c_void_p, c_uint32], c_uint32),
    "GetOverlappedResult": ([c_void_p, POINTER(Overlapped), POINTER(c_uint32), c_int], c_int),
}


def open_windivert(text: str, layer: Layer, *, priority: int, flags: HandleFlag) -> Handle:
    """Raises HandleRefused; ValueError for a filter that is none."""
    from pydivert import windivert_dll

    load: Any = getattr(ctypes, "WinDLL")  # noqa: B009 - there is none on other systems
    library = _typed(load(windivert_dll.DLL_PATH, use_last_error=True), WINDIVERT)
    return WinDivertHandle(
        library, _typed(load("kernel32", use_last_error=True), KERNEL32), text, layer, priority=priority, flags=flags
    )


def _typed(library: Any, functions: dict[str, tuple[list[Any], Any]]) -> Any:
    for name, (arguments, result) in functions.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


def last_error() -> int:
    """Of the calling thread's last call; 0 on other systems."""
    read: Any = getattr(ctypes, "get_last_error", lambda: 0)
    code: int = read()
    return code


class WinDivertHandle(Handle):
    """One handle of the driver."""

    def __init__(
        self, library: Any, kernel32: Any, text: str, layer: Layer, *, priority: int, flags: HandleFlag
    ) -> None:
        self._library, self._kernel32 = library, kernel32
        self._handle: int | None = library.WinDivertOpen(text.encode(), int(layer), priority, int(flags))
        if self._handle in (None, INVALID_HANDLE):
            code = last_error()
            if code == ERROR_INVALID_PARAMETER:
                raise ValueError(f"the filter is none: {text}")
            raise HandleRefused(code, f"open a {layer.name} handle: {_text(code)}")
        self._event = kernel32.CreateEventW(None, True, False, None)  # manual: RecvEx resets it
        self._overlapped = Overlapped(event=self._event)
        self._pending: Batch | None = None
        self._addresses_bytes = c_uint32(0)

    def receive(self, batch: Batch, timeout_s: float) -> tuple[int, int]:
        if self._pending is None and not self._request(batch):
            raise HandleShut
        assert self._pending is batch, "the batch of a request that is not yet answered"
        waited = self._kernel32.WaitForSingleObject(self._event, int(timeout_s * 1000))
        if waited == WAIT_TIMEOUT:
            return 0, 0
        self._pending = None
        length = c_uint32(0)
        done = self._kernel32.GetOverlappedResult(self._open, byref(self._overlapped), byref(length), False)
        if waited != WAIT_OBJECT_0 or not done:
            self._failed("receive packets")
        return self._addresses_bytes.value // RECORD_BYTES, length.value

    def _request(self, batch: Batch) -> bool:
        """Ask the driver to fill `batch`. False: nothing more will come."""
        self._addresses_bytes.value = len(batch.addresses)
        done = self._library.WinDivertRecvEx(
            self._open,
            batch.c_bytes,
            len(batch.bytes),
            None,
            0,
            batch.c_addresses,
            byref(self._addresses_bytes),
            byref(self._overlapped),
        )
        code = 0 if done else last_error()
        if code == ERROR_NO_DATA:
            return False
        if code not in (0, ERROR_IO_PENDING):
            raise OSError(code, f"receive packets: {_text(code)}")
        self._pending = batch
        return True

    def _failed(self, what: str) -> None:
        code = last_error()
        if code == ERROR_NO_DATA:
            raise HandleShut
        raise OSError(code, f"{what}: {_text(code)}")

    def send(self, batch: Batch, count: int, length: int) -> int:
        sent = c_uint32(0)
        done = self._library.WinDivertSendEx(
            self._open, batch.c_bytes, length, byref(sent), 0, batch.c_addresses, count * RECORD_BYTES, None
        )
        return 0 if done else count

    def set(self, setting: Setting, value: int) -> None:
        if not self._library.WinDivertSetParam(self._open, int(setting), value):
            self._failed(f"set {setting.name}")

    def shutdown(self) -> None:
        if not self._library.WinDivertShutdown(self._open, SHUTDOWN_RECEIVING):
            self._failed("shut a handle")

    def stats(self) -> HandleStats:
        return HandleStats()

    def close(self) -> None:
        if self._handle is None:
            return
        self._library.WinDivertShutdown(self._handle, SHUTDOWN_BOTH)
        if self._pending is not None:  # its memory is the driver's until it is answered
            self._kernel32.WaitForSingleObject(self._event, INFINITE)
        self._library.WinDivertClose(self._handle)
        self._handle = None
        self._kernel32.CloseHandle(self._event)

    @property
    def _open(self) -> int:
        if self._handle is None:
            raise OSError(9, "the handle is closed")
        return self._handle


def _text(code: int) -> str:
    describe: Any = getattr(ctypes, "FormatError", os.strerror)
    return str(describe(code))
