"""Windows is asked about processes as its documentation says: for real under Wine, else by objects that answer so."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import sys
from typing import Any

import psutil
import pytest
from windows_compiler import FOLDER
from windows_python import WHY_NOT, is_there, windows_python
from windows_structs import services_of

from mitmsec_redirect.windows_authenticode import Authenticode
from mitmsec_redirect.windows_rows import EPOCH_1601_NS
from mitmsec_redirect.windows_system import TRIES, Libraries, WindowsSystem

BEGAN_NS = 1_800_000_000 * 10**9
HANDLE, ASKED, FILE, CONTROL, NO_HANDLE = 0x1_0000_0004, 0x1_0000_0008, 0x1_0000_000C, 77, 2**64 - 1


class Dlls:
    """Answers for kernel32, ntdll and advapi32, and remembers what was closed."""

    def __init__(self, **answers: Any) -> None:
        self.path, self.package, self.status, self.times = "C:\\x.exe", "P_1.0_x64__id", 0, 1
        self.created = (BEGAN_NS + EPOCH_1601_NS) // 100  # FILETIME
        self.image_status: int | None = 0
        self.parent_status, self.error, self.growth, self.frequency = 0, 234, 0, 10_000_000
        self.services: list[tuple[str, int]] = []
        self.closed: list[int] = []
        self.asked = 0
        self.has_ended = False
        self.control: int | None = CONTROL
        for name, answer in answers.items():
            setattr(self, name, answer)

    def OpenProcess(self, access: int, inherits: int, pid: int) -> int | None:  # noqa: N802  # its name
        if access == 0x400:  # PROCESS_QUERY_INFORMATION
            return ASKED if self.image_status is not None else None
        assert (access, inherits) == (0x101000, 0), "PROCESS_QUERY_LIMITED_INFORMATION and SYNCHRONIZE"
        return HANDLE if pid == 7 else None

    def CloseHandle(self, handle: int) -> int:  # noqa: N802  # its name
        self.closed.append(handle)
        return 1

    CloseServiceHandle = CloseHandle

    def WaitForSingleObject(self, handle: int, milliseconds: int) -> int:  # noqa: N802  # its name
        assert (handle, milliseconds) == (HANDLE, 0)
        return 0 if self.has_ended else 0x102

    def GetProcessTimes(self, handle: int, created: Any, *others: Any) -> int:  # noqa: N802  # its name
        assert (handle, len(others)) == (HANDLE, 3)
        ctypes.memmove(created, self.created.to_bytes(8, "little"), 8)
        return self.times

    def QueryFullProcessImageNameW(self, handle: int, flags: int, text: Any, size: Any) -> int:  # noqa: N802  # its name
        assert (handle, flags, size._obj.value) == (HANDLE, 0, len(text))
        text.value = self.path
        return int(bool(self.path))

    def QueryPerformanceFrequency(self, frequency: Any) -> int:  # noqa: N802  # its name
        frequency._obj.value = self.frequency
        return int(self.frequency != 0)

    def NtQueryInformationProcess(self, handle: int, kind: int, words: Any, size: int, told: None) -> int:  # noqa: N802
        if kind == 44:  # ProcessImageFileMapping
            assert (handle, size, words._obj.value) == (ASKED, 8, FILE)
            return self.image_status or 0
        assert (handle, kind, size) == (HANDLE, 0, 48), "ProcessBasicInformation"
        words[5] = 4  # InheritedFromUniqueProcessId
        return self.parent_status

    def GetPackageFullName(self, handle: int, size: Any, text: Any) -> int:  # noqa: N802  # its name
        assert (handle, size._obj.value) == (HANDLE, len(text))
        text.value = self.package
        return self.status

    def OpenSCManagerW(self, machine: None, database: None, access: int) -> int | None:  # noqa: N802  # its name
        assert access == 4, "SC_MANAGER_ENUMERATE_SERVICE"
        return self.control

    def EnumServicesStatusExW(  # noqa: N802  # its name
        self, control: int, level: int, kind: int, state: int, rows: Any, room: int, *told: Any
    ) -> int:
        assert (control, level, kind, state) == (CONTROL, 0, 0x30, 1), "active, of Win32"
        needed, count, resume, group = told
        assert (resume._obj.value, group) == (0, None)
        self.asked += 1
        buffer = services_of(self.services, self.growth * self.asked)
        if len(buffer) > room:
            needed._obj.value = len(buffer) - room
            return 0
        move = ctypes.addressof(rows) - ctypes.addressof(buffer)
        for at in range(0, 56 * len(self.services), 56):  # names are where the caller's buffer is
            name = ctypes.c_uint64.from_buffer(buffer, at)
            name.value += move
        ctypes.memmove(rows, buffer, len(buffer))
        count._obj.value = len(self.services)
        return 1

    def CreateFileW(self, path: str, *arguments: Any) -> int:  # noqa: N802  # its name
        assert arguments == (0x80000020, 7, None, 3, 0, None), "to read and be run, shared with all, if it is there"
        return 5 if path == self.path else NO_HANDLE


def system(dlls: Dlls) -> WindowsSystem:
    return WindowsSystem(Libraries(dlls, dlls, dlls, lambda: dlls.error), Authenticode(dlls, dlls))


# --- one process ------------------------------------------------------------------------------------------------------
def test_what_is_open_is_asked_through_its_handle() -> None:
    dlls = Dlls()
    one = system(dlls).open(7)
    assert one is not None
    assert (one.pid, one.began_ns, one.exe(), one.parent()) == (7, BEGAN_NS, "C:\\x.exe", 4)
    assert (one.package(), one.has_ended()) == ("P_1.0_x64__id", False)
    dlls.has_ended = True
    assert one.has_ended()
    one.close()
    one.close()
    assert dlls.closed == [HANDLE]


@pytest.mark.parametrize("pid", [0, 8])
def test_who_is_not_there_is_not_opened(pid: int) -> None:
    assert system(Dlls()).open(pid) is None


@pytest.mark.parametrize(
    "answers", [{"times": 0}, {"created": 0}, {"created": EPOCH_1601_NS // 100}, {"created": 0x5555_5555_5555_5555}]
)
def test_who_does_not_say_when_it_began_is_let_go_of(answers: dict[str, int]) -> None:
    dlls = Dlls(**answers)
    assert system(dlls).open(7) is None
    assert dlls.closed == [HANDLE]


@pytest.mark.parametrize("path", ["", "System", "Registry", "\\Device\\HarddiskVolume1\\x.exe"])
def test_what_is_no_path_of_a_file_is_not_told(path: str) -> None:
    one = system(Dlls(path=path)).open(7)
    assert one is not None
    assert one.exe() is None


def test_a_path_on_another_machine_is_one() -> None:
    one = system(Dlls(path="\\\\files\\tools\\x.exe")).open(7)
    assert one is not None
    assert one.exe() == "\\\\files\\tools\\x.exe"


def test_a_parent_that_is_not_told_is_not_none() -> None:
    one = system(Dlls(parent_status=-1073741790)).open(7)
    assert one is not None
    assert one.parent() is None


@pytest.mark.parametrize(
    ("status", "runs"),
    [(0, True), (-0x3FFFFFFF, False), (-0x3FFFFFDE, None), (-0x3FFFFFFD, None), (None, None)],
    ids=["it is", "STATUS_UNSUCCESSFUL", "STATUS_ACCESS_DENIED", "STATUS_INVALID_INFO_CLASS", "may not be asked"],
)
def test_whether_a_file_is_its_program_is_asked_by_their_handles(
    status: int | None, runs: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Msvcrt:
        get_osfhandle = staticmethod({6: FILE}.__getitem__)

    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt)
    dlls = Dlls(image_status=status)
    one = system(dlls).open(7)
    assert one is not None
    assert one.runs(6) is runs
    assert dlls.closed == ([] if status is None else [ASKED])


def test_no_package_is_not_the_same_as_not_known() -> None:
    dlls = Dlls(status=15700)
    one = system(dlls).open(7)
    assert one is not None
    assert one.package() is None
    dlls.status = 6
    with pytest.raises(OSError, match="error 6"):
        one.package()


def test_the_user_is_whom_psutil_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process stands for the one that is open."""
    monkeypatch.setattr(Dlls, "OpenProcess", lambda *_: HANDLE)
    one = system(Dlls()).open(os.getpid())
    assert one is not None
    assert one.user() == psutil.Process().username()
    nobody = system(Dlls()).open(2**22 + 1)
    assert nobody is not None
    assert nobody.user() is None


def test_the_clock_of_events_says_how_fast_it_goes() -> None:
    assert system(Dlls()).ticks_per_s() == 10_000_000
    with pytest.raises(OSError, match="does not tell"):
        system(Dlls(frequency=0)).ticks_per_s()


def test_living_processes_are_those_that_psutil_lists() -> None:
    assert os.getpid() in system(Dlls()).pids()


# --- services ---------------------------------------------------------------------------------------------------------
def test_services_are_told_by_process() -> None:
    dlls = Dlls(services=[("lmhosts", 7), ("Spooler", 0), ("Dnscache", 7), ("W3SVC", 8)])
    assert system(dlls).services() == {7: ("Dnscache", "lmhosts"), 8: ("W3SVC",)}
    assert dlls.closed == [CONTROL]


def test_services_that_want_more_room_get_it() -> None:
    names = [f"service {number:04}" for number in range(1000)]
    dlls = Dlls(services=[(name, 8) for name in names])
    assert system(dlls).services() == {8: tuple(names)}
    assert dlls.asked == 2


def test_services_that_always_want_more_are_given_up() -> None:
    dlls = Dlls(growth=1_000_000)
    with pytest.raises(OSError, match="ever more"):
        system(dlls).services()
    assert (dlls.asked, dlls.closed) == (TRIES, [CONTROL])


def test_why_services_cannot_be_asked_for_is_told() -> None:
    with pytest.raises(OSError, match="error 5"):
        system(Dlls(control=None, error=5)).services()
    dlls = Dlls(growth=1_000_000, error=87)
    with pytest.raises(OSError, match="error 87"):
        system(dlls).services()
    assert dlls.closed == [CONTROL]


def test_rows_that_lie_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def lies(self: Dlls, *arguments: Any) -> int:
        arguments[7]._obj.value = 10_000
        return 1

    monkeypatch.setattr(Dlls, "EnumServicesStatusExW", lies)
    with pytest.raises(OSError, match="10000 services promised"):
        system(Dlls()).services()


# --- files ------------------------------------------------------------------------------------------------------------
def test_a_file_is_opened_so_that_others_may_do_what_they_like(monkeypatch: pytest.MonkeyPatch) -> None:
    class Msvcrt:
        @staticmethod
        def open_osfhandle(handle: int, flags: int) -> int:
            assert (handle, flags) == (5, os.O_RDONLY | 0x8000)
            if is_full:
                raise OSError(24, "Too many open files")
            return 6

        @staticmethod
        def get_osfhandle(descriptor: int) -> int:
            return descriptor - 1

    is_full = False
    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt)
    monkeypatch.setattr(os, "O_BINARY", 0x8000, raising=False)
    assert system(Dlls()).open_file("C:\\x.exe") == 6
    monkeypatch.setattr(Authenticode, "signer", lambda self, path, handle: f"CN={path} {handle}")
    assert system(Dlls()).signer("C:\\x.exe", 6) == "CN=C:\\x.exe 5", "asked by its handle"
    with pytest.raises(OSError, match=r"gone\.exe cannot be opened: error 2"):
        system(Dlls(error=2)).open_file("C:\\gone.exe")
    is_full, dlls = True, Dlls()
    with pytest.raises(OSError, match="Too many"):
        system(dlls).open_file("C:\\x.exe")
    assert dlls.closed == [5]


def test_a_file_for_which_there_is_no_descriptor_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        @staticmethod
        def open_osfhandle(handle: int, flags: int) -> int:
            raise OSError(errno.EMFILE, "too many")

    monkeypatch.setitem(sys.modules, "msvcrt", Full)
    monkeypatch.setattr(os, "O_BINARY", 0x8000, raising=False)
    dlls = Dlls()
    with pytest.raises(OSError, match="too many"):
        system(dlls).open_file("C:\\x.exe")
    assert dlls.closed == [5]


@pytest.mark.skipif(sys.platform == "win32", reason="it is there")
def test_elsewhere_there_is_no_such_system() -> None:
    with pytest.raises(OSError, match="on Windows only"):
        WindowsSystem()


def test_the_systems_own_libraries_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Function:
        restype = argtypes = None

    class Library:
        def __init__(self, name: str, *, use_last_error: bool = False) -> None:
            assert use_last_error or name in ("wintrust", "crypt32")
            self.name = name

        def __getattr__(self, name: str) -> Function:
            setattr(self, name, Function())
            return getattr(self, name)  # type: ignore[no-any-return]

    monkeypatch.setattr(ctypes, "WinDLL", Library, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: 5, raising=False)
    libraries = WindowsSystem()._libraries
    assert libraries.kernel32.OpenProcess.restype is ctypes.c_void_p, "a handle has 64 bits"
    assert libraries.advapi32.OpenSCManagerW.restype is ctypes.c_void_p
    assert (libraries.ntdll.name, libraries.last_error()) == ("ntdll", 5)


# --- under Wine -------------------------------------------------------------------------------------------------------
UNDER_WINE = r"""
import shutil, subprocess
from msgspec import to_builtins
from mitmsec.core.model import Fact
from mitmsec_redirect.windows_processes import WindowsProcesses, now
from mitmsec_redirect.windows_system import WindowsSystem

system = WindowsSystem()
table = WindowsProcesses(system)
began = table.refresh()
told(to_builtins([one.process for one in began]))
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
watched = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
new = {}
while watched.pid not in new:
    new |= {one.process.pid: one.process for one in table.refresh()}
watched.communicate(b"\n")
told([watched.pid, to_builtins(new[watched.pid])])
owner = table.whose(child.pid, 0, "", now().event_ns)
while owner.process.sha256 is None or Fact.SIGNER in owner.process.unread:
    owner = table.whose(child.pid, 0, "", now().event_ns)
told([os.getpid(), child.pid])
told(to_builtins(owner.process))
child.communicate(b"\n")
told([[type(one).__name__, one.process.pid] for one in table.refresh()])
others = {subprocess.Popen([sys.executable, "-c", ""]).pid for _ in range(5)}
told(child.pid in others)
told(to_builtins(table.whose(child.pid, 0, "", now().event_ns).process))
told(sorted(name for names in system.services().values() for name in names))
copy = shutil.copy(sys.executable, os.path.join(here, "copied.exe"))
file = system.open_file(copy)
own = system.open_file(sys.executable)
told([system.open(os.getpid()).runs(one) for one in (own, file)])
os.close(own)
os.replace(copy, os.path.join(here, "renamed.exe"))
told(os.read(file, 2).decode())
os.close(file)
os.remove(os.path.join(here, "renamed.exe"))
table.close()
"""


@pytest.mark.skipif(not is_there(), reason=WHY_NOT)
def test_under_wine_all_of_it_is_so() -> None:
    living, (watched, began), (own, child), process, events, is_reused, ended, services, runs, magic = windows_python(
        "processes.py", UNDER_WINE
    )
    assert runs == [None, None], "Wine does not tell; Windows, True and False"
    assert own in {one["pid"] for one in living}
    assert any(one["exe"] == "C:\\windows\\system32\\services.exe" and one["parent"] for one in living)
    assert (process["pid"], process["name"], process["confidence"]) == (child, "python.exe", "kernel")
    assert process["parent"]["pid"] == own
    assert process["parent"]["exe"] == process["exe"]
    assert process["exe"].lower().endswith("\\wine\\python.exe")
    assert process["sha256"] == hashlib.sha256((FOLDER / "python.exe").read_bytes()).hexdigest()
    assert process["user"].endswith(f"\\{psutil.Process().username()}")
    assert (process["package"], process["unread"]) == (None, [])
    assert process["signer"].startswith("CN=Python Software Foundation, O=Python Software Foundation, ")
    assert ["Ended", child] in events
    assert (began["pid"], began["exe"], began["parent"]["pid"]) == (watched, process["exe"], own)
    assert not is_reused, "it is held open"
    assert (ended["exe"], ended["confidence"]) == (process["exe"], "kernel")
    assert "PlugPlay" in services
    assert magic == "MZ"
