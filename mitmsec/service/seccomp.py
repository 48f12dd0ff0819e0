"""System calls that a jailed process has no business with, denied by the kernel (seccomp, filter mode).

Why an empty network namespace is not enough: a socket that was passed in keeps the namespace it was made in, and
connect(AF_UNSPEC) followed by connect() would take it anywhere. So whoever gets sockets from others may not connect,
bind, listen or accept; may not do so by TCP Fast Open (an address or MSG_FASTOPEN with a send), nor through io_uring,
which no filter sees; and may not make namespaces, look into other processes, or load programs into the kernel.

The filter is a list of steps over `struct seccomp_data` (Documentation/userspace-api/seccomp_filter.rst), classic BPF:

    other architecture, other ABI ─► kill      denied number ─► EPERM      clone3 ─► ENOSYS (the C library uses clone)
    clone with CLONE_NEWUSER, send with an address or MSG_FASTOPEN ─► EPERM                   everything else ─► allow
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping, Sequence

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000

DENIED: Mapping[str, Mapping[str, int]] = {
    "x86_64": {
        "accept": 43, "accept4": 288, "bind": 49, "bpf": 321, "connect": 42, "io_uring_enter": 426,
        "io_uring_register": 427, "io_uring_setup": 425, "keyctl": 250, "listen": 50, "mount": 165,
        "open_by_handle_at": 304, "perf_event_open": 298, "pidfd_getfd": 438, "pivot_root": 155,
        "process_vm_readv": 310, "process_vm_writev": 311, "ptrace": 101, "setns": 308, "umount2": 166, "unshare": 272,
        "userfaultfd": 323,
    },
    "aarch64": {
        "accept": 202, "accept4": 242, "bind": 200, "bpf": 280, "connect": 203, "io_uring_enter": 426,
        "io_uring_register": 427, "io_uring_setup": 425, "keyctl": 219, "listen": 201, "mount": 40,
        "open_by_handle_at": 265, "perf_event_open": 241, "pidfd_getfd": 438, "pivot_root": 41,
        "process_vm_readv": 270, "process_vm_writev": 271, "ptrace": 117, "setns": 268, "umount2": 39, "unshare": 97,
        "userfaultfd": 282,
    },
}  # fmt: skip
WEIGHED: Mapping[str, Mapping[str, int]] = {
    "x86_64": {"clone": 56, "clone3": 435, "sendmmsg": 307, "sendmsg": 46, "sendto": 44},
    "aarch64": {"clone": 220, "clone3": 435, "sendmmsg": 269, "sendmsg": 211, "sendto": 206},
}
CLONE_NEWUSER, MSG_FASTOPEN = 0x10000000, 0x20000000

ALLOW, KILL, DENY = 0x7FFF0000, 0x80000000, 0x00050000
LOAD, JUMP_EQUAL, JUMP_ANY_BIT, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2


def program(machine: str) -> bytes:
    """The filter for `machine` as an array of `struct sock_filter`. Raises KeyError for one that is not known."""
    weighed = WEIGHED[machine]
    steps = [_load(ARCHITECTURE), _unless(JUMP_EQUAL, AUDIT_ARCH[machine]), _return(KILL), _load(NUMBER)]
    if machine == "x86_64":
        steps += [_when(JUMP_AT_LEAST, X32_BIT), _return(KILL)]
    for number in DENIED[machine].values():
        steps += [_when(JUMP_EQUAL, number), _return(DENY | errno.EPERM)]
    steps += [_when(JUMP_EQUAL, weighed["clone3"]), _return(DENY | errno.ENOSYS)]
    steps += _weigh(weighed["clone"], [(0, CLONE_NEWUSER)])
    steps += _weigh(weighed["sendto"], [(3, MSG_FASTOPEN), (4, None)])
    steps += _weigh(weighed["sendmsg"], [(2, MSG_FASTOPEN)])
    steps += _weigh(weighed["sendmmsg"], [(3, MSG_FASTOPEN)])
    return b"".join([*steps, _return(ALLOW)])


def apply() -> None:
    """Deny from now on, for this process and all that it becomes. Needs no_new_privs. Raises OSError."""
    code = program(platform.machine())
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(buffer))
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(header), 0, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def _weigh(number: int, arguments: Sequence[tuple[int, int | None]]) -> list[bytes]:
    """For the call `number`: deny if an argument has one of these bits (None: is not null, in either half)."""
    checks: list[bytes] = []
    for index, bits in arguments:
        for half in (0, 4) if bits is None else (0,):
            checks += [
                _load(ARGUMENTS + 8 * index + half),
                _when(JUMP_ANY_BIT, 0xFFFFFFFF if bits is None else bits),
                _return(DENY | errno.EPERM),
            ]
    checks.append(_return(ALLOW))
    return [_step(JUMP_EQUAL, number, skip_false=len(checks)), *checks]


def _step(code: int, value: int, *, skip_true: int = 0, skip_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, skip_true, skip_false, value)


def _load(offset: int) -> bytes:
    return _step(LOAD, offset)


def _when(code: int, value: int) -> bytes:
    """The next step is for what matches; everything else skips it."""
    return _step(code, value, skip_false=1)


def _unless(code: int, value: int) -> bytes:
    return _step(code, value, skip_true=1)


def _return(action: int) -> bytes:
    return _step(RETURN, action)
