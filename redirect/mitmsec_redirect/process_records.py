"""The bytes in which the kernel tells of processes: offsets for `process_programs`, parsers for the rest.

     0 kind │ 4 pid │ 8 parent │ 12 other │ 16 uid │ 20 flags │ 24 time │ 32 started │ 40 parent's start │ 48 cgroup
    56 entry of `selected` │ 64 device │ 72 inode │ 80 ctime s │ 88 ns │ 92 0 │ 96 comm[16] │ 112      all kinds
   112 mount namespace │ 116 path bytes │ 120 name bytes │ 124 0 │ 128 path …│ name …│                 executed only

A pid is what the kernel calls tgid, in the first pid namespace. `other` is, for a fork, the process that called it (not
always the parent: CLONE_PARENT), for an exec, the thread that called it. The path is the executable's at that moment,
from leaf to root, each name with its zero. 64–96 is the key of the map `executables`.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from functools import lru_cache
from typing import Final

from mitmsec.core.model import Value

HEAD: Final = struct.Struct("=IIIIIIQQQQQQQqII16s")
TAIL: Final = struct.Struct("=IIII")
EXECUTABLE: Final = struct.Struct("=QQqII")
EXECUTABLE_AT: Final = 64
PID, PARENT, OTHER, UID, FLAGS, TIME, STARTED, PARENT_STARTED, CGROUP, ENTRY = 4, 8, 12, 16, 20, 24, 32, 40, 48, 56
DEVICE, INODE, CTIME_S, CTIME_NS, COMM = 64, 72, 80, 88, 96
MOUNT_NAMESPACE, PATH_BYTES, NAME_BYTES, TEXT = 112, 116, 120, 128
NAME_LIMIT: Final = 256  # of one component of a path, and of the name given to execve(), with its zero
PATH_LIMIT: Final = 4096
SCRATCH_BYTES: Final = TEXT + PATH_LIMIT + NAME_LIMIT


class RecordKind(IntEnum):
    """The first field."""

    STARTED = 1
    EXECUTED = 2
    ENDED = 3


class RecordFlag(IntFlag):
    """What `flags` may hold."""

    NO_ROOM = 1  # the entry could not be written: `selected` is full
    ROOTED = 2  # the path reaches the root of its mount namespace
    CUT = 4  # the path is longer than we keep


class Count(IntEnum):
    """Indices of the map of counts."""

    LOST_STARTED = 0
    LOST_EXECUTED = 1
    LOST_ENDED = 2
    NO_ROOM = 3


class MalformedRecord(ValueError):
    """The bytes are no record of these programs."""


class Executable(Value, frozen=True):
    """One content of one file, as the kernel tells files apart: any change of it makes it another (its ctime)."""

    device: int  # of the file system: in some (btrfs, overlay) not what stat() says
    inode: int
    ctime_ns: int

    def key(self) -> bytes:
        """In the map `executables`."""
        return EXECUTABLE.pack(self.device, self.inode, *divmod(self.ctime_ns, 10**9), 0)


class _Told(Value, frozen=True):
    """What every record says."""

    pid: int
    started_ns: int  # CLOCK_BOOTTIME
    at_ns: int  # CLOCK_MONOTONIC
    parent: int  # who will be told of its end; 0: nobody here
    parent_started_ns: int
    uid: int
    comm: str
    cgroup: int  # id in the cgroup2 hierarchy
    entry: int  # what `selected` holds now; see `verdicts`
    no_room: bool  # …or should hold: the map was full


class ProcessStarted(_Told, frozen=True):
    """A fork, seen before the child runs. It runs the same program as `forker`."""

    forker: int
    executable: Executable | None  # None: a thread of the kernel


class ProcessExecuted(_Told, frozen=True):
    """A program began in a process."""

    thread: int  # that called execve(): others than the first take its place
    executable: Executable | None
    mount_namespace: int  # inode number of the namespace in which `path` is meant; 0: none
    path: str | None  # None: too long, or in no namespace (memfd)
    name: str  # as given to execve(): relative, or a script; at most 255 bytes


class ProcessEnded(_Told, frozen=True):
    """Its last thread is ending."""


type ProcessEvent = ProcessStarted | ProcessExecuted | ProcessEnded


# as plain integers: thousands a second are read
_STARTED, _EXECUTED, _ENDED = int(RecordKind.STARTED), int(RecordKind.EXECUTED), int(RecordKind.ENDED)
_NO_ROOM, _PATH_STATE, _PATH_WHOLE = (
    int(RecordFlag.NO_ROOM),
    int(RecordFlag.ROOTED | RecordFlag.CUT),
    int(RecordFlag.ROOTED),
)


def parse_process(data: bytes) -> ProcessEvent:
    """One record. Raises MalformedRecord."""
    try:
        kind, pid, parent, other, uid, flags, at, started, parent_started, cgroup, entry, *file, comm = (
            HEAD.unpack_from(data)
        )
        name = _text(comm)
        told = (pid, started, at, parent, parent_started, uid, name, cgroup, entry, flags & _NO_ROOM != 0)
        if kind == _STARTED:
            return ProcessStarted(*told, other, _executable(*file))
        if kind == _EXECUTED:
            return ProcessExecuted(*told, other, _executable(*file), *_tail(data, flags))
        if kind == _ENDED:
            return ProcessEnded(*told)
    except struct.error as error:
        raise MalformedRecord(str(error)) from error
    raise MalformedRecord(f"{kind} is no kind of record")


def _tail(data: bytes, flags: int) -> tuple[int, str | None, str]:
    namespace, path_bytes, name_bytes, _ = TAIL.unpack_from(data, HEAD.size)
    name_at = TEXT + path_bytes
    if len(data) < name_at + name_bytes:
        raise MalformedRecord("shorter than it says")
    path = path_of_names(data[TEXT:name_at]) if flags & _PATH_STATE == _PATH_WHOLE else None
    return namespace, path, _decoded(data[name_at : name_at + name_bytes].removesuffix(b"\0"))


@lru_cache(maxsize=4096)
def path_of_names(names: bytes) -> str:
    """Root first, of names from leaf to root, each with its zero. The same programs start again and again."""
    return "/" + "/".join(_decoded(name) for name in reversed(names.split(b"\0")[:-1]))


def _executable(device: int, inode: int, ctime_s: int, ctime_ns: int, _: int) -> Executable | None:
    return Executable(device, inode, ctime_s * 10**9 + ctime_ns) if inode else None


def _decoded(name: bytes) -> str:
    """As os.fsdecode, which is how paths from /proc read."""
    return name.decode(errors="surrogateescape")


def _text(comm: bytes) -> str:
    return comm.split(b"\0", 1)[0].decode(errors="replace")
