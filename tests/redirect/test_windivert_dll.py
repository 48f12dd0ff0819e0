"""The calls to WinDivert64.dll, held against its documented conventions by a library that behaves as described there.

The driver cannot be had here. What it would do wrong if called wrongly, the stand-in refuses: lengths in bytes, 255
records at most, a batch that is used again while it is the driver's.
"""

from __future__ import annotations

import ctypes
from collections import deque
from typing import Any

import pytest
from pydivert import windivert_dll as pydivert_dll
from windows_python import WHY_NOT, is_there, windows_python

from mitmsec_redirect import windivert_dll
from mitmsec_redirect.divert_library import PACKETS_MOST, Batch, HandleFlag, HandleRefused, HandleShut, Setting
from mitmsec_redirect.divert_records import RECORD_BYTES, Layer
from mitmsec_redirect.windivert_dll import (
    ERROR_INVALID_PARAMETER,
    ERROR_IO_PENDING,
    ERROR_NO_DATA,
    INVALID_HANDLE,
    WAIT_OBJECT_0,
    WAIT_TIMEOUT,
    Overlapped,
    WinDivertHandle,
)

PACKET = bytes([0x45, 0, 0, 20]) + bytes(16)


class Driver:
    """Library and kernel32 in one."""

    def __init__(self) -> None:
        self.error = 0
        self.waiting: deque[list[bytes]] = deque()
        self.pending: Any = None
        self.sent: list[bytes] = []
        self.calls: list[str] = []
        self.settings: dict[int, int] = {}
        self.is_shut = False
        self.refuses = False

    def WinDivertOpen(self, text: bytes, layer: int, priority: int, flags: int) -> int | None:  # noqa: N802
        assert isinstance(text, bytes)
        self.opened = (text, layer, priority, flags)
        return INVALID_HANDLE if self.error else 7

    def CreateEventW(self, security: None, manual: bool, state: bool, name: None) -> int:  # noqa: N802
        assert manual, "RecvEx and GetOverlappedResult both look at it"
        return 99

    def WinDivertRecvEx(  # noqa: N802
        self, handle: int, buffer: Any, size: int, received: None, flags: int, addresses: Any, length: Any, over: Any
    ) -> int:
        assert (handle, flags, received) == (7, 0, None)
        assert self.pending is None, "one request at a time"
        assert length._obj.value <= PACKETS_MOST * RECORD_BYTES
        assert over._obj.event == 99
        if self.is_shut and not self.waiting:
            self.error = ERROR_NO_DATA
            return 0
        self.pending = (buffer, size, addresses, length)
        self.error = ERROR_IO_PENDING
        return 0

    def WaitForSingleObject(self, event: int, milliseconds: int) -> int:  # noqa: N802
        assert event == 99
        self.calls.append(f"wait {milliseconds}")
        return WAIT_OBJECT_0 if self.waiting or self.is_shut else WAIT_TIMEOUT

    def GetOverlappedResult(self, handle: int, over: Any, transferred: Any, wait: bool) -> int:  # noqa: N802
        assert not wait
        buffer, size, addresses, length = self.pending
        self.pending = None
        if not self.waiting:
            self.error = ERROR_NO_DATA
            return 0
        packets = self.waiting.popleft()
        data = b"".join(packets)
        assert len(data) <= size
        ctypes.memmove(buffer, data, len(data))
        ctypes.memset(addresses, 0xAB, RECORD_BYTES * len(packets))
        length._obj.value, transferred._obj.value = RECORD_BYTES * len(packets), len(data)
        return 1

    def WinDivertSendEx(  # noqa: N802
        self, handle: int, buffer: Any, size: int, sent: Any, flags: int, addresses: Any, length: int, over: None
    ) -> int:
        assert length % RECORD_BYTES == 0
        assert length <= PACKETS_MOST * RECORD_BYTES
        if self.refuses:
            return 0
        self.sent.append(bytes(buffer)[:size])
        sent._obj.value = size
        return 1

    def WinDivertSetParam(self, handle: int, setting: int, value: int) -> int:  # noqa: N802
        self.settings[setting] = value
        self.error = ERROR_INVALID_PARAMETER if value < 0 else 0
        return int(value >= 0)

    def WinDivertShutdown(self, handle: int, how: int) -> int:  # noqa: N802
        self.calls.append(f"shutdown {how}")
        self.is_shut = True
        return int(not self.refuses)

    def WinDivertClose(self, handle: int) -> int:  # noqa: N802
        assert self.pending is None or "wait 4294967295" in self.calls, "the driver still writes into our memory"
        self.calls.append("close")
        return 1

    def CloseHandle(self, event: int) -> int:  # noqa: N802
        self.calls.append(f"close event {event}")
        return 1


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(windivert_dll, "last_error", lambda: made.error)
    return made


def opened(driver: Driver) -> WinDivertHandle:
    return WinDivertHandle(driver, driver, "tcp", Layer.NETWORK, priority=-5, flags=HandleFlag.DIVERT)


def test_a_handle_is_opened_with_bytes_layer_priority_and_flags(driver: Driver) -> None:
    flags = HandleFlag.SNIFF | HandleFlag.RECEIVE_ONLY
    WinDivertHandle(driver, driver, "tcp", Layer.SOCKET, priority=3, flags=flags)
    assert driver.opened == (b"tcp", 3, 3, 5)


def test_a_filter_that_is_none_is_told_from_a_driver_that_is_not_there(driver: Driver) -> None:
    driver.error = ERROR_INVALID_PARAMETER
    with pytest.raises(ValueError, match="the filter is none: tcp"):
        opened(driver)
    driver.error = 5
    with pytest.raises(HandleRefused, match="open a NETWORK handle"):
        opened(driver)


def test_a_batch_is_filled_and_its_records_are_counted_from_bytes(driver: Driver) -> None:
    handle, batch = opened(driver), Batch()
    driver.waiting.append([PACKET, PACKET, PACKET])
    assert handle.receive(batch, 0.5) == (3, 60)
    assert batch.bytes[:60] == PACKET * 3
    assert set(batch.addresses[: 3 * RECORD_BYTES]) == {0xAB}
    assert driver.calls == ["wait 500"]


def test_a_request_that_was_not_answered_in_time_is_neither_cancelled_nor_repeated(driver: Driver) -> None:
    handle, batch = opened(driver), Batch()
    assert handle.receive(batch, 0) == (0, 0)
    assert handle.receive(batch, 0) == (0, 0)
    driver.waiting.append([PACKET])
    assert handle.receive(batch, 0) == (1, 20)
    handle.receive(batch, 0)
    with pytest.raises(AssertionError, match="not yet answered"):
        handle.receive(Batch(), 0)


def test_a_shut_handle_gives_what_it_has_and_then_says_so(driver: Driver) -> None:
    handle, batch = opened(driver), Batch()
    driver.waiting.extend([[PACKET], [PACKET, PACKET]])
    handle.shutdown()
    assert [handle.receive(batch, 1)[0] for _ in range(2)] == [1, 2]
    with pytest.raises(HandleShut):
        handle.receive(batch, 1)


def test_a_request_that_waits_when_the_handle_is_shut_is_answered(driver: Driver) -> None:
    handle, batch = opened(driver), Batch()
    handle.receive(batch, 0)
    handle.shutdown()
    with pytest.raises(HandleShut):
        handle.receive(batch, 0)


def test_sending_names_bytes_of_records_and_says_how_many_were_not_taken(driver: Driver) -> None:
    handle, batch = opened(driver), Batch()
    batch.put(0, batch.put(1, 0, PACKET, bytes(80)), PACKET, bytes(80))
    assert handle.send(batch, 2, 40) == 0
    assert driver.sent == [PACKET * 2]
    driver.refuses = True
    assert handle.send(batch, 2, 40) == 2


def test_settings_reach_the_driver_or_fail(driver: Driver) -> None:
    handle = opened(driver)
    handle.set(Setting.LENGTH, 16384)
    assert driver.settings == {0: 16384}
    with pytest.raises(OSError, match="set AGE_MS"):
        handle.set(Setting.AGE_MS, -1)


def test_a_failure_to_receive_or_to_shut_is_told(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = opened(driver)
    driver.refuses, driver.error = True, 6
    with pytest.raises(OSError, match="shut a handle"):
        handle.shutdown()
    monkeypatch.setattr(driver, "WinDivertRecvEx", lambda *_: 0)
    driver.error = 6
    with pytest.raises(OSError, match="receive packets"):
        handle.receive(Batch(), 0)


@pytest.mark.parametrize("is_pending", [False, True])
def test_closing_waits_for_the_drivers_answer_and_happens_once(driver: Driver, is_pending: bool) -> None:
    handle, batch = opened(driver), Batch()
    if is_pending:
        handle.receive(batch, 0)
    driver.calls.clear()
    handle.close()
    handle.close()
    waits = ["wait 4294967295"] if is_pending else []
    assert driver.calls == ["shutdown 3", *waits, "close", "close event 99"]
    with pytest.raises(OSError, match="the handle is closed"):
        handle.receive(batch, 0)


def test_the_library_that_pydivert_brings_is_loaded_and_its_functions_are_typed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Library:
        def __init__(self, name: str, use_last_error: bool) -> None:
            assert use_last_error
            for function in windivert_dll.KERNEL32 if name == "kernel32" else windivert_dll.WINDIVERT:
                setattr(self, function, lambda *arguments: len(arguments))
            loaded[name] = self

    loaded: dict[str, Any] = {}
    monkeypatch.setattr(ctypes, "WinDLL", Library, raising=False)
    handle = windivert_dll.open_windivert("tcp", Layer.NETWORK, priority=0, flags=HandleFlag.DIVERT)
    assert set(loaded) == {"kernel32", pydivert_dll.DLL_PATH}
    assert isinstance(handle, WinDivertHandle)
    opens = loaded[pydivert_dll.DLL_PATH].WinDivertOpen
    assert (opens.argtypes, opens.restype) == windivert_dll.WINDIVERT["WinDivertOpen"]
    assert windivert_dll.last_error() == 0


def test_it_counts_nothing(driver: Driver) -> None:
    assert opened(driver).stats().taken == 0


def test_signatures_and_structures_are_those_that_pydivert_uses() -> None:
    """By size and kind: pydivert says HANDLE where we say a pointer, and c_uint for c_uint32."""
    for name, (arguments, result) in windivert_dll.WINDIVERT.items():
        theirs, their_result = pydivert_dll.WINDIVERT_FUNCTIONS[name]
        assert [ctypes.sizeof(one) for one in arguments] == [ctypes.sizeof(one) for one in theirs], name
        assert ctypes.sizeof(result) == ctypes.sizeof(their_result)
    assert ctypes.sizeof(Overlapped) == 32  # theirs is longer here: a DWORD of Linux has eight bytes
    assert Overlapped.event.offset == 24


# --- under Wine -------------------------------------------------------------------------------------------------------
UNDER_WINE = r"""
import types
brought = types.ModuleType("pydivert.windivert_dll")
brought.DLL_PATH = os.path.join(here, "WinDivert64.dll")
sys.modules["pydivert"] = package = types.ModuleType("pydivert")
sys.modules["pydivert.windivert_dll"] = package.windivert_dll = brought
from mitmsec_redirect.divert_library import HandleFlag, HandleRefused, open_handle
from mitmsec_redirect.divert_records import Layer
from mitmsec_redirect.filters import EVENTS_FILTER
sniff = HandleFlag.SNIFF | HandleFlag.RECEIVE_ONLY
for text, layer, flags in (
    ("outbound and", Layer.NETWORK, HandleFlag.DIVERT),
    ("outbound and tcp.Syn", Layer.NETWORK, HandleFlag.DIVERT),
    (EVENTS_FILTER, Layer.NETWORK, sniff),
    (EVENTS_FILTER, Layer.SOCKET, sniff),
):
    try:
        open_handle(text, layer, flags=flags)
    except (HandleRefused, ValueError) as error:
        told([type(error).__name__, getattr(error, "errno", None)])
"""


@pytest.mark.skipif(not is_there(), reason=WHY_NOT)
def test_under_wine_the_real_dll_is_called_and_tells_a_filter_that_is_none_from_a_driver_that_is_not_there() -> None:
    none, refused = ["ValueError", None], ["HandleRefused", 1114]
    assert windows_python("handles.py", UNDER_WINE) == [none, refused, none, refused]
