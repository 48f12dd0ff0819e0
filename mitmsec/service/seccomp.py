"""System calls that a jailed process has no business with, denied by the kernel (seccomp, filter mode).

Why an empty network namespace is not enough: a socket that was passed in keeps the namespace it was made in, and
connect(AF_UNSPEC) followed by connect() would take it anywhere. So whoever gets sockets from others may not connect,
bind, listen or accept; may not do so by TCP Fast Open (an address or MSG_FASTOPEN with a send), nor through io_uring,
which no filter sees; and may not make namespaces, look into other processes, or load programs into the kernel.
Nor may they set SO_LINGER: the sockets are the gate's as well, and it would have the gate's own close() wait.
The gate accepts and dials, and reads and writes the maps that it was given: of bpf(2) it keeps that and nothing else.

A filter is a list of steps over `struct seccomp_data` (Documentation/userspace-api/seccomp_filter.rst), classic BPF:

    other architecture, other ABI ─► kill      denied number ─► EPERM      clone3 ─► ENOSYS (the C library uses clone)
    clone with CLONE_NEWUSER, send with an address or MSG_FASTOPEN, SO_LINGER ─► EPERM        everything else ─► allow

There are two, and the stricter answer counts: `apply` before Python is executed, `seal` when the child begins to serve,
after which no program, no process and no thread can be started any more, and no memory be had but what RLIMIT_AS counts
(a memfd's is not mapped). A limit by RLIMIT_NPROC would count all workers of all runs together: they share a user.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Mapping, Sequence

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000

DENIED: Mapping[str, Mapping[str, int]] = {
    "x86_64": {
        "add_key": 248, "chroot": 161, "clock_adjtime": 305, "clock_settime": 227, "delete_module": 176,
        "fanotify_init": 300, "finit_module": 313, "fsconfig": 431, "fsmount": 432, "fsopen": 430, "fspick": 433,
        "init_module": 175, "io_uring_enter": 426, "io_uring_register": 427, "io_uring_setup": 425, "kcmp": 312,
        "kexec_file_load": 320, "kexec_load": 246, "keyctl": 250, "mount": 165, "mount_setattr": 442,
        "move_mount": 429, "name_to_handle_at": 303, "open_by_handle_at": 304, "open_tree": 428,
        "perf_event_open": 298, "personality": 135, "pidfd_getfd": 438, "pidfd_open": 434, "pidfd_send_signal": 424,
        "pivot_root": 155, "process_madvise": 440, "process_mrelease": 448, "process_vm_readv": 310,
        "process_vm_writev": 311, "ptrace": 101, "quotactl": 179, "reboot": 169, "request_key": 249, "setns": 308,
        "swapoff": 168, "swapon": 167, "syslog": 103, "umount2": 166, "unshare": 272, "userfaultfd": 323,
    },
    "aarch64": {
        "add_key": 217, "chroot": 51, "clock_adjtime": 266, "clock_settime": 112, "delete_module": 106,
        "fanotify_init": 262, "finit_module": 273, "fsconfig": 431, "fsmount": 432, "fsopen": 430, "fspick": 433,
        "init_module": 105, "io_uring_enter": 426, "io_uring_register": 427, "io_uring_setup": 425, "kcmp": 272,
        "kexec_file_load": 294, "kexec_load": 104, "keyctl": 219, "mount": 40, "mount_setattr": 442,
        "move_mount": 429, "name_to_handle_at": 264, "open_by_handle_at": 265, "open_tree": 428,
        "perf_event_open": 241, "personality": 92, "pidfd_getfd": 438, "pidfd_open": 434, "pidfd_send_signal": 424,
        "pivot_root": 41, "process_madvise": 440, "process_mrelease": 448, "process_vm_readv": 270,
        "process_vm_writev": 271, "ptrace": 117, "quotactl": 60, "reboot": 142, "request_key": 218, "setns": 268,
        "swapoff": 225, "swapon": 224, "syslog": 116, "umount2": 39, "unshare": 97, "userfaultfd": 282,
    },
}  # fmt: skip
NETWORK: Mapping[str, Mapping[str, int]] = {  # for those who get their sockets from others
    "x86_64": {
        "accept": 43, "accept4": 288, "bind": 49, "connect": 42, "listen": 50,
    },
    "aarch64": {
        "accept": 202, "accept4": 242, "bind": 200, "connect": 203, "listen": 201,
    },
}  # fmt: skip
SERVES = frozenset({"accept", "accept4", "listen"})
PROGRAMS: Mapping[str, Mapping[str, int]] = {  # once a child serves
    "x86_64": {
        "execve": 59, "execveat": 322, "fork": 57, "memfd_create": 319, "memfd_secret": 447, "vfork": 58,
    },
    "aarch64": {
        "execve": 221, "execveat": 281, "memfd_create": 279, "memfd_secret": 447,
    },
}  # fmt: skip
WEIGHED: Mapping[str, Mapping[str, int]] = {
    "x86_64": {
        "bpf": 321, "clone": 56, "clone3": 435, "sendmmsg": 307, "sendmsg": 46, "sendto": 44,
        "setsockopt": 54,
    },
    "aarch64": {
        "bpf": 280, "clone": 220, "clone3": 435, "sendmmsg": 269, "sendmsg": 211, "sendto": 206,
        "setsockopt": 208,
    },
}  # fmt: skip
CLONE_NEWUSER, MSG_FASTOPEN = 0x10000000, 0x20000000
SOL_SOCKET, SO_LINGER = 1, 13
MAP_COMMANDS = (1, 2, 3, 21)  # of bpf(2): look up, update, delete, and take an element of a map that one has

ALLOW, KILL, DENY = 0x7FFF0000, 0x80000000, 0x00050000
LOAD, JUMP_EQUAL, JUMP_ANY_BIT, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16

PR_SET_NO_NEW_PRIVS, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 38, 1, 1
SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}


def program(machine: str, *, network: bool = False, serves: bool = False) -> bytes:
    """The filter for `machine` as an array of `struct sock_filter`; with `network`, a gate's; with `serves`, of who
    accepts on a socket that it was given, and connects nowhere. KeyError: not known.
    """
    weighed = WEIGHED[machine]
    of_network = [number for name, number in NETWORK[machine].items() if not (serves and name in SERVES)]
    denied = [*DENIED[machine].values(), *([] if network else [*of_network, weighed["bpf"]])]
    steps = [*_opening(machine), *_denials(denied)]
    steps += [_when(JUMP_EQUAL, weighed["clone3"]), _return(DENY | errno.ENOSYS)]
    steps += _weigh(weighed["clone"], [(0, CLONE_NEWUSER)])
    if network:
        steps += _only(weighed["bpf"], MAP_COMMANDS)
    else:
        steps += _weigh(weighed["sendto"], [(3, MSG_FASTOPEN), (4, None)])
        steps += _weigh(weighed["sendmsg"], [(2, MSG_FASTOPEN)])
        steps += _weigh(weighed["sendmmsg"], [(3, MSG_FASTOPEN)])
        steps += _never(weighed["setsockopt"], {1: SOL_SOCKET, 2: SO_LINGER})
    return b"".join([*steps, _return(ALLOW)])


def sealing(machine: str) -> bytes:
    """The second filter for `machine`: no other program, process or thread. Raises KeyError for one not known."""
    clone, clone3 = WEIGHED[machine]["clone"], WEIGHED[machine]["clone3"]
    steps = [*_opening(machine), *_denials([*PROGRAMS[machine].values(), clone])]
    steps += [_when(JUMP_EQUAL, clone3), _return(DENY | errno.ENOSYS)]
    return b"".join([*steps, _return(ALLOW)])


def apply(*, network: bool = False, serves: bool = False) -> None:
    """Deny from now on, for this process and all that it becomes. Needs no_new_privs. Raises OSError."""
    _load_filter(program(os.uname().machine, network=network, serves=serves))


def seal() -> None:
    """No other program, process or thread from now on, for all threads that there are. Raises OSError."""
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _load_filter(sealing(os.uname().machine))


def _load_filter(code: bytes) -> None:
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(buffer))
    library = ctypes.CDLL(None, use_errno=True)
    number = SYS_SECCOMP[os.uname().machine]
    done = library.syscall(number, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, ctypes.c_char_p(header))
    if done != 0:  # a positive number is a thread that has a filter of its own
        error = ctypes.get_errno() if done < 0 else errno.EBUSY
        raise OSError(error, f"seccomp: {os.strerror(error)}")


def _opening(machine: str) -> list[bytes]:
    """Kill what speaks another architecture or ABI; the call's number is loaded afterwards."""
    steps = [_load(ARCHITECTURE), _unless(JUMP_EQUAL, AUDIT_ARCH[machine]), _return(KILL), _load(NUMBER)]
    if machine == "x86_64":
        steps += [_when(JUMP_AT_LEAST, X32_BIT), _return(KILL)]
    return steps


def _denials(numbers: Iterable[int]) -> list[bytes]:
    return [step for number in numbers for step in (_when(JUMP_EQUAL, number), _return(DENY | errno.EPERM))]


def _only(number: int, first_arguments: Sequence[int]) -> list[bytes]:
    """For the call `number`: deny unless its first argument, an int, is one of these."""
    checks = [_load(ARGUMENTS)]
    for value in first_arguments:
        checks += [_when(JUMP_EQUAL, value), _return(ALLOW)]
    checks.append(_return(DENY | errno.EPERM))
    return [_step(JUMP_EQUAL, number, skip_false=len(checks)), *checks]


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


def _never(number: int, arguments: Mapping[int, int]) -> list[bytes]:
    """For the call `number`: deny if all of these arguments, each an int, have these values."""
    checks: list[bytes] = []
    for index, value in arguments.items():
        checks += [_load(ARGUMENTS + 8 * index), _unless(JUMP_EQUAL, value), _return(ALLOW)]
    checks.append(_return(DENY | errno.EPERM))
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
