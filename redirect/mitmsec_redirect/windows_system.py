"""Windows, asked about its processes: what is open stays the same process, whatever its pid is used for afterwards.

    open(pid) ── OpenProcess ──► handle ──┬─ GetProcessTimes               when it began
                                          ├─ QueryFullProcessImageNameW    its executable
                                          ├─ NtQueryInformationProcess     its parent's pid
                                          ├─ GetPackageFullName            its package
                                          ├─ WaitForSingleObject           whether it has ended
                          ├─ OpenProcess again, by pid ──► NtQueryInformationProcess, whether a file is its program
                                          └─ psutil, by pid                its user

As long as a handle is open the system gives its pid to nobody else, also after the process has ended. So what psutil
reads by pid meanwhile is of this process too. psutil lists the pids and names the user; for the rest it asks by pid
anew each time, takes a snapshot of all processes for one parent, and asks each service apart (135 ms under Wine, where
one EnumServicesStatusExW takes 6 ms).

Nothing here has been run on Windows. It runs under Wine in tests/redirect/test_windows_system.py; what Wine cannot
show, that test holds against what is documented with a library object of its own. Administrators may ask about all
processes but a few that the system protects.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Mapping
from ctypes import byref, c_int, c_int32, c_int64, c_uint32, c_uint64, c_void_p, c_wchar_p
from typing import Any, Final

import psutil

from mitmsec.core.model import Value
from mitmsec_redirect.windows_authenticode import Authenticode
from mitmsec_redirect.windows_rows import EPOCH_1601_NS, Malformed
from mitmsec_redirect.windows_service_rows import parse_services, services_by_pid

QUERY_INFORMATION, QUERY_LIMITED_INFORMATION, SYNCHRONIZE = 0x400, 0x1000, 0x100000  # winnt.h
WAIT_OBJECT_0 = 0
NO_PACKAGE, MORE_DATA = 15700, 234
ENUMERATE_SERVICE, WIN32_SERVICES, ACTIVE = 4, 0x30, 1
GENERIC_READ, FILE_EXECUTE, SHARE_ALL, OPEN_EXISTING = 0x80000000, 0x20, 7, 3
INVALID_HANDLE: Final = c_void_p(-1).value
LATEST_NS = 2**63  # in the year 2262
PATH_CHARS = 32768  # the longest path
PACKAGE_CHARS = 128  # PACKAGE_FULL_NAME_MAX_LENGTH is 127
BASIC, BASIC_WORDS, PARENT_WORD = 0, 6, 5  # PROCESS_BASIC_INFORMATION
# A file's handle goes in, and is the program's or not. Since Vista; in no documentation, but in lists of these numbers.
IMAGE_FILE_MAPPING, IS_ANOTHER = 44, 0xC0000001
TRIES, SPARE_BYTES = 8, 16 * 1024  # services may start between the question for the size and the one for the rows
PATH: Final = re.compile(r"[A-Za-z]:\\|\\\\")  # others are names of no file: "System", "Registry"


class Libraries(Value, frozen=True):
    """The DLLs that are called, and how a call that failed is asked why."""

    kernel32: Any
    ntdll: Any
    advapi32: Any
    last_error: Callable[[], int]


class OpenProcess:
    """One process, held open. Made by `WindowsSystem.open`."""

    def __init__(self, libraries: Libraries, handle: int, pid: int, began_ns: int) -> None:
        self._libraries, self._handle = libraries, handle
        self.pid, self.began_ns = pid, began_ns  # Unix time

    def has_ended(self) -> bool:
        return bool(self._libraries.kernel32.WaitForSingleObject(self._handle, 0) == WAIT_OBJECT_0)

    def exe(self) -> str | None:
        text, size = ctypes.create_unicode_buffer(PATH_CHARS), c_uint32(PATH_CHARS)
        if not self._libraries.kernel32.QueryFullProcessImageNameW(self._handle, 0, text, byref(size)):
            return None
        return text.value if PATH.match(text.value) else None

    def parent(self) -> int | None:
        """The pid that its parent had, and somebody else may have by now; 0: it has none. None: that is not known."""
        words = (c_uint64 * BASIC_WORDS)()
        query = self._libraries.ntdll.NtQueryInformationProcess
        return None if query(self._handle, BASIC, words, ctypes.sizeof(words), None) else int(words[PARENT_WORD])

    def runs(self, descriptor: int) -> bool | None:
        """Whether its program is the very file that is open as `descriptor`, whatever either of them is called by now.

        None: that is not told, as of who may not be asked.
        """
        import msvcrt  # Windows only

        asked = self._libraries.kernel32.OpenProcess(QUERY_INFORMATION, 0, self.pid)
        if not asked:
            return None
        try:
            file = c_void_p(msvcrt.get_osfhandle(descriptor))  # type: ignore[attr-defined]
            query = self._libraries.ntdll.NtQueryInformationProcess
            status = query(asked, IMAGE_FILE_MAPPING, byref(file), ctypes.sizeof(file), None) & 0xFFFFFFFF
        finally:
            self._libraries.kernel32.CloseHandle(asked)
        return {0: True, IS_ANOTHER: False}.get(status)

    def user(self) -> str | None:
        """DOMAIN\\name."""
        try:
            return psutil.Process(self.pid).username()
        except (psutil.Error, OSError):
            return None

    def package(self) -> str | None:
        """The full name of its AppX or MSIX package; None: it has none. Raises OSError where that is not known."""
        text, size = ctypes.create_unicode_buffer(PACKAGE_CHARS), c_uint32(PACKAGE_CHARS)
        status = self._libraries.kernel32.GetPackageFullName(self._handle, byref(size), text)
        if status not in (0, NO_PACKAGE):
            raise OSError(f"GetPackageFullName: error {status}")
        return text.value if status == 0 else None

    def close(self) -> None:
        """Idempotent."""
        handle, self._handle = self._handle, 0
        if handle:
            self._libraries.kernel32.CloseHandle(handle)


class WindowsSystem:
    """`libraries` and `authenticode` stand for the system's own. Raises OSError where there are none."""

    def __init__(self, libraries: Libraries | None = None, authenticode: Authenticode | None = None) -> None:
        self._libraries = libraries or _loaded()
        self._authenticode = authenticode or Authenticode()

    def ticks_per_s(self) -> int:
        """Of QueryPerformanceCounter, by which WinDivert stamps its events. Raises OSError."""
        frequency = c_int64()
        if not self._libraries.kernel32.QueryPerformanceFrequency(byref(frequency)) or frequency.value <= 0:
            raise OSError("QueryPerformanceFrequency does not tell")
        return frequency.value

    def pids(self) -> list[int]:
        """Of all processes that live now."""
        return psutil.pids()

    def open(self, pid: int) -> OpenProcess | None:
        """The process that has `pid` now. None: there is none, or it is none that may be asked about."""
        kernel32 = self._libraries.kernel32
        handle = kernel32.OpenProcess(QUERY_LIMITED_INFORMATION | SYNCHRONIZE, 0, pid) if pid else None
        if not handle:
            return None
        times = (c_uint64 * 4)()  # FILETIME: creation, exit, kernel, user
        is_told = kernel32.GetProcessTimes(handle, *(byref(times, at) for at in (0, 8, 16, 24)))
        began_ns = times[0] * 100 - EPOCH_1601_NS
        if not is_told or not 0 < began_ns < LATEST_NS:  # Wine tells nonsense of one that is being made
            kernel32.CloseHandle(handle)
            return None
        return OpenProcess(self._libraries, handle, pid, began_ns)

    def services(self) -> Mapping[int, tuple[str, ...]]:
        """The names of the services that run in each process, by pid. Raises OSError."""
        advapi32 = self._libraries.advapi32
        control = advapi32.OpenSCManagerW(None, None, ENUMERATE_SERVICE)
        if not control:
            raise OSError(f"the services cannot be asked for: error {self._libraries.last_error()}")
        try:
            return self._enumerated(control)
        finally:
            advapi32.CloseServiceHandle(control)

    def _enumerated(self, control: int) -> Mapping[int, tuple[str, ...]]:
        size, count, needed = 0, c_uint32(), c_uint32()
        for _ in range(TRIES):
            buffer, resume = ctypes.create_string_buffer(size + SPARE_BYTES), c_uint32(0)
            ask = self._libraries.advapi32.EnumServicesStatusExW
            room = byref(needed), byref(count), byref(resume)
            if ask(control, 0, WIN32_SERVICES, ACTIVE, buffer, len(buffer), *room, None):
                found = parse_services(buffer.raw, ctypes.addressof(buffer), count.value)
                if isinstance(found, Malformed):
                    raise OSError(f"the services cannot be read: {found.reason}")
                return services_by_pid(found)
            if (error := self._libraries.last_error()) != MORE_DATA:
                raise OSError(f"the services cannot be asked for: error {error}")
            size = len(buffer) + needed.value
        raise OSError("there are ever more services")

    def open_file(self, path: str) -> int:
        """A descriptor to read it by, and to ask who `runs` it. Meanwhile it can be written, renamed and deleted as
        before. Raises OSError.
        """
        import msvcrt  # Windows only

        ask = self._libraries.kernel32.CreateFileW
        handle = ask(path, GENERIC_READ | FILE_EXECUTE, SHARE_ALL, None, OPEN_EXISTING, 0, None)
        if handle == INVALID_HANDLE:
            raise OSError(f"{path} cannot be opened: error {self._libraries.last_error()}")
        try:
            descriptor: int = msvcrt.open_osfhandle(handle, os.O_RDONLY | os.O_BINARY)  # type: ignore[attr-defined]
        except OSError:  # as many are open as may be
            self._libraries.kernel32.CloseHandle(handle)
            raise
        return descriptor

    def signer(self, path: str, descriptor: int) -> str | None:
        """Who signed the file that `descriptor` is, as `Authenticode.signer` tells it. Raises OSError."""
        import msvcrt  # Windows only

        handle: int = msvcrt.get_osfhandle(descriptor)  # type: ignore[attr-defined]
        return self._authenticode.signer(path, handle)


def _loaded() -> Libraries:
    if not hasattr(ctypes, "WinDLL"):
        raise OSError("kernel32.dll is there on Windows only")
    kernel32, ntdll, advapi32 = (ctypes.WinDLL(name, use_last_error=True) for name in ("kernel32", "ntdll", "advapi32"))
    return _declared(Libraries(kernel32, ntdll, advapi32, ctypes.get_last_error))  # type: ignore[attr-defined]


def _declared(libraries: Libraries) -> Libraries:
    """With the types of the calls: handles are pointers."""
    kernel32, ntdll, advapi32 = libraries.kernel32, libraries.ntdll, libraries.advapi32
    for library, name, result, arguments in (
        (kernel32, "OpenProcess", c_void_p, (c_uint32, c_int, c_uint32)),
        (kernel32, "CloseHandle", c_int, (c_void_p,)),
        (kernel32, "WaitForSingleObject", c_uint32, (c_void_p, c_uint32)),
        (kernel32, "GetProcessTimes", c_int, (c_void_p,) * 5),
        (kernel32, "QueryFullProcessImageNameW", c_int, (c_void_p, c_uint32, c_void_p, c_void_p)),
        (kernel32, "GetPackageFullName", c_int32, (c_void_p, c_void_p, c_void_p)),
        (kernel32, "CreateFileW", c_void_p, (c_wchar_p, c_uint32, c_uint32, c_void_p, c_uint32, c_uint32, c_void_p)),
        (kernel32, "QueryPerformanceFrequency", c_int, (c_void_p,)),
        (ntdll, "NtQueryInformationProcess", c_int32, (c_void_p, c_int, c_void_p, c_uint32, c_void_p)),
        (advapi32, "OpenSCManagerW", c_void_p, (c_wchar_p, c_wchar_p, c_uint32)),
        (advapi32, "CloseServiceHandle", c_int, (c_void_p,)),
        (
            advapi32,
            "EnumServicesStatusExW",
            c_int,
            (c_void_p, c_int, c_uint32, c_uint32, c_void_p, c_uint32, c_void_p, c_void_p, c_void_p, c_wchar_p),
        ),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return libraries
