"""A thin typed layer over bpf(2): maps, programs, links, pins and BTF, with nothing but ctypes.

Each call fills the part of `union bpf_attr` that its command reads and leaves the rest zero, which is what older and
newer kernels both accept. Descriptors that the kernel returns are close-on-exec and belong to the caller.

`EbpfUnavailable` means that this machine or this user cannot do it, and says what would help; anything else is an
`OSError`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from enum import IntEnum

from mitmsec.core.model import Value
from mitmsec_redirect.backend import BackendUnavailable

SYSCALL_NUMBER = {"x86_64": 321, "aarch64": 280}
ATTR_BYTES = 152
VERIFIER_LOG_BYTES = 1 << 20
VERIFIER_LOG_TAIL = 2000  # characters of the verifier's log in an error: its verdict stands at the end
PROG_TYPE_SCHED_CLS, PROG_TYPE_CGROUP_SKB, PROG_TYPE_CGROUP_SOCK, PROG_TYPE_SOCK_OPS = 3, 8, 9, 13
PROG_TYPE_RAW_TRACEPOINT, PROG_TYPE_CGROUP_SOCK_ADDR, PROG_TYPE_TRACING, PROG_TYPE_SK_LOOKUP = 17, 18, 26, 30
TRACE_RAW_TRACEPOINT = 23  # attach type of a tracing program that is typed by BTF (Linux 5.5)
MAP_FLAG_NO_PREALLOC = 1
MAP_FLAG_CLONE = 1 << 9  # of storage in sockets: what a listener has, its connections begin with
UPDATE_NEW_ONLY = 1
PROG_RUN_TIME_NS_OFFSET = 192  # in struct bpf_prog_info
PROG_INFO_BYTES = 216
PROG_RUN_ANSWER_OFFSET = 4  # in the attributes of PROG_RUN


class Command(IntEnum):
    """Commands of bpf(2), include/uapi/linux/bpf.h."""

    MAP_CREATE = 0
    MAP_LOOKUP = 1
    MAP_UPDATE = 2
    MAP_DELETE = 3
    MAP_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_RUN = 10
    OBJ_INFO = 15
    RAW_TRACEPOINT_OPEN = 17
    BTF_LOAD = 18
    MAP_LOOKUP_AND_DELETE = 21
    LINK_CREATE = 28
    LINK_UPDATE = 29
    ENABLE_STATS = 32
    LINK_DETACH = 34


class MapKind(IntEnum):
    """The kinds of map that we use."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    CGROUP_ARRAY = 8
    LRU_HASH = 9
    LPM_TRIE = 11
    SOCKMAP = 15
    SK_STORAGE = 24
    RINGBUF = 27


class Attach(IntEnum):
    """Attach types of programs on cgroups (SK_LOOKUP: network namespaces); _KINDS has those not of kind SOCK_ADDR."""

    INGRESS = 0
    EGRESS = 1
    SOCK_OPS = 3
    CONNECT4 = 10
    CONNECT6 = 11
    SENDMSG4 = 14
    SENDMSG6 = 15
    RECVMSG4 = 19
    RECVMSG6 = 20
    GETPEERNAME4 = 29
    GETPEERNAME6 = 30
    GETSOCKNAME4 = 31
    GETSOCKNAME6 = 32
    SOCK_RELEASE = 34
    SK_LOOKUP = 36  # 5.9


_KINDS = {
    Attach.INGRESS: PROG_TYPE_CGROUP_SKB,
    Attach.EGRESS: PROG_TYPE_CGROUP_SKB,
    Attach.SOCK_OPS: PROG_TYPE_SOCK_OPS,
    Attach.SOCK_RELEASE: PROG_TYPE_CGROUP_SOCK,
    Attach.SK_LOOKUP: PROG_TYPE_SK_LOOKUP,
}


class EbpfUnavailable(BackendUnavailable):
    """eBPF cannot be used here: `reason` says why, `remedy` what to do about it."""


_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_number = SYSCALL_NUMBER.get(os.uname().machine, -1)


def _call(command: Command, attr: bytes | ctypes.Array[ctypes.c_char], doing: str) -> int:
    """The kernel's answer. Raises EbpfUnavailable or OSError, both naming `doing`."""
    if _number < 0:
        raise EbpfUnavailable(f"{doing}: no bpf(2) number known for {os.uname().machine}", "Use x86_64 or aarch64.")
    if isinstance(attr, bytes):
        attr = ctypes.create_string_buffer(attr.ljust(ATTR_BYTES, b"\0"), ATTR_BYTES)
    answer: int = _libc.syscall(_number, int(command), attr, len(attr))
    if answer < 0:
        raise _refusal(ctypes.get_errno(), doing)
    return answer


def _refusal(code: int, doing: str) -> EbpfUnavailable | OSError:
    if code == errno.ENOSYS:
        return EbpfUnavailable(f"{doing}: this kernel has no bpf(2)", "Use a kernel built with CONFIG_BPF_SYSCALL.")
    if code == errno.EPERM:
        return EbpfUnavailable(
            f"{doing}: the kernel does not permit it",
            "Run as root, with CAP_BPF and CAP_NET_ADMIN, and outside a container that filters bpf(2).",
        )
    return OSError(code, f"{doing}: {os.strerror(code)}")


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def _element_attr(fd: int, key_at: int, value_at: int, flags: int = 0) -> ctypes.Array[ctypes.c_char]:
    attr = ctypes.create_string_buffer(ATTR_BYTES)
    struct.pack_into("=IIQQQ", attr, 0, fd, 0, key_at, value_at, flags)
    return attr


# --- maps -------------------------------------------------------------------------------------------------------------
class Btf(Value, frozen=True):
    """Types that a map must declare: the descriptor of a loaded BTF object, and the ids of key and value in it."""

    fd: int
    key: int
    value: int


class Map:
    """A map by descriptor. Buffers and attributes are made once, so a call costs one system call; not thread-safe.

    `key_bytes` 0 means a queue. The map owns its descriptor only if `create` made it.
    """

    def __init__(self, fd: int, key_bytes: int, value_bytes: int) -> None:
        self.fd = fd
        self._key_bytes = key_bytes
        self._value_bytes = value_bytes
        self._key = ctypes.create_string_buffer(max(key_bytes, 1))
        self._value = ctypes.create_string_buffer(max(value_bytes, 1))
        key, value = _address(self._key), _address(self._value)
        self._both = _element_attr(fd, key, value)
        self._new = _element_attr(fd, key, value, UPDATE_NEW_ONLY)
        self._keyed = _element_attr(fd, key, 0)  # fields that a command lacks must be zero

    @classmethod
    def create(
        cls,
        kind: MapKind,
        key_bytes: int,
        value_bytes: int,
        entries: int,
        name: str,
        *,
        flags: int = 0,
        btf: Btf | None = None,
    ) -> Map:
        """A new map. `name` is at most 15 letters, digits, underscores."""
        types = (btf.fd, btf.key, btf.value) if btf else (0, 0, 0)
        attr = struct.pack("=7I16s4I", kind, key_bytes, value_bytes, entries, flags, 0, 0, name.encode(), 0, *types)
        return cls(_call(Command.MAP_CREATE, attr, f"create the map {name}"), key_bytes, value_bytes)

    def _element(self, command: Command, attr: ctypes.Array[ctypes.c_char], key: bytes) -> None:
        if len(key) != self._key_bytes:
            raise ValueError(f"a key of {self._key_bytes} bytes is needed, not {len(key)}")
        self._key.raw = key
        if _syscall(_number, command, attr, ATTR_BYTES) < 0:
            raise _refusal(ctypes.get_errno(), f"map {command.name}")

    def _set_value(self, value: bytes) -> None:
        if len(value) != self._value_bytes:
            raise ValueError(f"a value of {self._value_bytes} bytes is needed, not {len(value)}")
        self._value.raw = value

    def lookup(self, key: bytes) -> bytes | None:
        """The value, None where there is none."""
        try:
            self._element(Command.MAP_LOOKUP, self._both, key)
        except FileNotFoundError:
            return None
        return self._value.raw[: self._value_bytes]

    def update(self, key: bytes, value: bytes) -> None:
        """Insert or replace. Raises OSError E2BIG/ENOSPC when the map is full."""
        self._set_value(value)
        self._element(Command.MAP_UPDATE, self._both, key)

    def insert(self, key: bytes, value: bytes) -> bool:
        """False, and nothing changes, when there is such a key. Raises OSError E2BIG when the map is full."""
        self._set_value(value)
        try:
            self._element(Command.MAP_UPDATE, self._new, key)
        except FileExistsError:
            return False
        return True

    def delete(self, key: bytes) -> bool:
        """False when there was no such key."""
        try:
            self._element(Command.MAP_DELETE, self._keyed, key)
        except FileNotFoundError:
            return False
        return True

    def take(self, key: bytes) -> bytes | None:
        """The value, which is not there any more; None where there is none. Of hashes only (Linux 5.14)."""
        try:
            self._element(Command.MAP_LOOKUP_AND_DELETE, self._both, key)
        except FileNotFoundError:
            return None
        return self._value.raw[: self._value_bytes]

    def keys(self) -> Iterator[bytes]:
        """All keys; a snapshot only as long as nobody deletes meanwhile."""
        attr = ctypes.create_string_buffer(ATTR_BYTES)
        key = ctypes.create_string_buffer(self._key_bytes)
        at = 0
        while True:
            struct.pack_into("=IIQQ", attr, 0, self.fd, 0, at, _address(key))
            try:
                _call(Command.MAP_NEXT_KEY, attr, "walk a map")
            except FileNotFoundError:
                return
            yield key.raw
            at = _address(key)

    def close(self) -> None:
        os.close(self.fd)


# --- programs, links, pins --------------------------------------------------------------------------------------------
class ProgramRejected(OSError):
    """The verifier does not accept the program; the message ends with the verifier's own words."""


def load_program(code: bytes, attach: Attach, name: str) -> int:
    """A descriptor of the loaded program. Raises ProgramRejected with the verifier's log."""
    return _load(code, _KINDS.get(attach, PROG_TYPE_CGROUP_SOCK_ADDR), attach, name)


def load_classifier(code: bytes, name: str) -> int:
    """A program for packets on an interface (`clsact`). Raises ProgramRejected."""
    return _load(code, PROG_TYPE_SCHED_CLS, 0, name)


def load_tracing(code: bytes, btf_id: int, name: str) -> int:
    """A program for a raw tracepoint, whose arguments have the types that the kernel's BTF gives them.

    `btf_id` is that of `btf_trace_…`. Raises ProgramRejected.
    """
    return _load(code, PROG_TYPE_TRACING, TRACE_RAW_TRACEPOINT, name, btf_id)


def load_runnable(code: bytes, name: str) -> int:
    """A program that runs when `run` says so, and only then. Raises ProgramRejected."""
    return _load(code, PROG_TYPE_RAW_TRACEPOINT, 0, name)


def _load(code: bytes, kind: int, attach: int, name: str, btf_id: int = 0) -> int:
    try:
        return _load_logged(code, kind, attach, name, btf_id, None)
    except EbpfUnavailable:
        raise
    except OSError as error:
        log = ctypes.create_string_buffer(VERIFIER_LOG_BYTES)
        try:
            return _load_logged(code, kind, attach, name, btf_id, log)
        except OSError:
            text = log.value.decode(errors="replace")[-VERIFIER_LOG_TAIL:]
            raise ProgramRejected(error.errno, f"load the program {name}: {error.strerror}\n{text}") from error


def _load_logged(
    code: bytes, kind: int, attach: int, name: str, btf_id: int, log: ctypes.Array[ctypes.c_char] | None
) -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    log_fields = (1, len(log), _address(log)) if log is not None else (0, 0, 0)
    attr = struct.pack(
        "=IIQQIIQII16sII36xI",
        kind,
        len(code) // 8,
        _address(instructions),
        _address(licence),
        *log_fields,
        0,
        0,
        name.encode(),
        0,
        attach,
        btf_id,
    )
    return _call(Command.PROG_LOAD, attr, f"load the program {name}")


def attach_to_tracepoint(program_fd: int) -> int:
    """A descriptor of the link of a program from `load_tracing`, which knows its tracepoint."""
    return _call(Command.RAW_TRACEPOINT_OPEN, struct.pack("=QI", 0, program_fd), "attach to a tracepoint")


def run(program_fd: int, *arguments: int) -> int:
    """What a program from `load_runnable` answers; it runs on this processor, now (Linux 5.10)."""
    context = ctypes.create_string_buffer(struct.pack(f"={len(arguments)}Q", *arguments), 8 * len(arguments))
    attr = ctypes.create_string_buffer(ATTR_BYTES)
    struct.pack_into("=II32xIIQ", attr, 0, program_fd, 0, len(context), 0, _address(context))
    _call(Command.PROG_RUN, attr, "run a program")
    answer: int = struct.unpack_from("=I", attr.raw, PROG_RUN_ANSWER_OFFSET)[0]
    return answer


def attach_to_cgroup(program_fd: int, cgroup_fd: int, attach: Attach) -> int:
    """A descriptor of the link; the program runs until its last descriptor and pin are gone, or it is detached."""
    return _call(
        Command.LINK_CREATE,
        struct.pack("=IIII", program_fd, cgroup_fd, attach, 0),
        f"attach {attach.name.lower()} to the cgroup",
    )


def attach_to_netns(program_fd: int, netns_fd: int) -> int:
    """The same of a SK_LOOKUP program."""
    attr = struct.pack("=IIII", program_fd, netns_fd, Attach.SK_LOOKUP, 0)
    return _call(Command.LINK_CREATE, attr, "attach to the network namespace")


def replace_program(link_fd: int, program_fd: int) -> None:
    """The link runs this program from now on; no connection meets neither or both."""
    _call(Command.LINK_UPDATE, struct.pack("=IIII", link_fd, program_fd, 0, 0), "replace a link's program")


def detach(link_fd: int) -> None:
    """Stop the link's program at once, pinned or not."""
    _call(Command.LINK_DETACH, struct.pack("=I", link_fd), "detach a link")


def pin(fd: int, path: str) -> None:
    """Keep the object alive under `path`, which is on a bpffs."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _call(Command.OBJ_PIN, struct.pack("=QII", _address(name), fd, 0), f"pin {path}")


def pinned(path: str) -> int:
    """A descriptor of the object that was pinned under `path`."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _call(Command.OBJ_GET, struct.pack("=QII", _address(name), 0, 0), f"open the pin {path}")


class RunCount(Value, frozen=True):
    """How often a program ran, and for how long, while statistics were on."""

    runs: int
    run_time_ns: int
    skipped: int = 0  # not run because it was running on that processor already; always counted (Linux 5.12)


def run_count(program_fd: int) -> RunCount:
    """Counts only what ran while some `enable_stats` descriptor was open."""
    info = ctypes.create_string_buffer(PROG_INFO_BYTES)
    attr = struct.pack("=IIQ", program_fd, PROG_INFO_BYTES, _address(info))
    _call(Command.OBJ_INFO, attr, "read a program's counters")
    run_time_ns, runs, skipped = struct.unpack_from("=QQQ", info.raw, PROG_RUN_TIME_NS_OFFSET)
    return RunCount(runs=runs, run_time_ns=run_time_ns, skipped=skipped)


def enable_stats() -> int:
    """A descriptor; as long as it is open, the kernel counts the runs of every program of the machine."""
    return _call(Command.ENABLE_STATS, struct.pack("=I", 0), "enable run statistics")


def load_btf(data: bytes) -> int:
    """A descriptor of the loaded BTF object. Raises OSError EINVAL for malformed types."""
    buffer = ctypes.create_string_buffer(data, len(data))
    return _call(Command.BTF_LOAD, struct.pack("=QQIII", _address(buffer), 0, len(data), 0, 0), "load BTF")
