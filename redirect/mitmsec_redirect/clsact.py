"""What libebpfdivert attaches to network interfaces on Linux, and removing what nobody holds any more.

Each NETWORK handle attaches two classifiers to every interface, below a `clsact` queueing discipline that stays when
the handle is closed; `bystanders` attaches two more. A process that dies leaves them all: those of the library stop
diverting three seconds later, and run for every packet ever after. The library finds them only through a registry on
/sys/fs/bpf, which not every machine has. So whose they are is asked of the kernel: who opened them holds the programs,
and /proc says who holds a program.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from typing import Final

from mitmsec.core.model import Value
from mitmsec_redirect.netlink import (
    NETLINK_ROUTE,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    RECEIVE_BYTES,
    Reply,
    messages,
    parse,
)

NLM_F_ACK = 0x4
NLM_F_NEW = 0x200 | 0x400  # there is none yet, and it is made
RTM_DELQDISC, RTM_GETQDISC, RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 37, 38, 44, 45, 46
TCA_KIND, TCA_OPTIONS, TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS, TCA_BPF_ID = 1, 2, 6, 7, 8, 11
TCA_BPF_FLAG_ACT_DIRECT = 1  # what the program answers is done
ETH_P_ALL = 3
CLSACT_HANDLE, CLSACT_PARENT, INGRESS, EGRESS = 0xFFFF0000, 0xFFFFFFF1, 0xFFFFFFF2, 0xFFFFFFF3
PROGRAMS: Final = b"tc_divert_"  # what the library's programs are called, with "ingress" or "egress"

_HEADER: Final = struct.Struct("=IHHII")
_TC: Final = struct.Struct("=BBHiIII")  # family, -, -, interface, handle, parent, info: priority and protocol
_OPTIONS: Final = struct.Struct("=")


class Classifier(Value, frozen=True):
    """One program on an interface, and how the kernel names it."""

    interface: int
    parent: int
    handle: int
    info: int
    kind: bytes
    name: bytes
    program: int  # its id


class TrafficControl:
    """The queueing disciplines and classifiers of the network namespace that it was made in. Not thread-safe."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
        self._sock.bind((0, 0))
        self._number = 0

    def clsact(self) -> frozenset[int]:
        """Interfaces that have one."""
        replies = self._ask(RTM_GETQDISC, NLM_F_DUMP, _TC.pack(0, 0, 0, 0, 0, 0, 0))
        return frozenset(
            reply.fields[3] for reply in replies if reply.attributes.get(TCA_KIND, b"").rstrip(b"\0") == b"clsact"
        )

    def classifiers(self, interface: int) -> list[Classifier]:
        """What is attached below the interface's clsact."""
        return [
            _classifier(reply)
            for parent in (INGRESS, EGRESS)
            for reply in self._ask(RTM_GETTFILTER, NLM_F_DUMP, _TC.pack(0, 0, 0, interface, 0, parent, 0))
            if reply.fields[4]  # an empty head comes first
        ]

    def attach(self, interface: int, parent: int, handle: int, priority: int, program: int, name: bytes) -> Classifier:
        """Raises OSError."""
        what = (
            _attribute(TCA_BPF_FD, struct.pack("=I", program))
            + _attribute(TCA_BPF_NAME, name + b"\0")
            + _attribute(TCA_BPF_FLAGS, struct.pack("=I", TCA_BPF_FLAG_ACT_DIRECT))
        )
        info = priority << 16 | socket.htons(ETH_P_ALL)
        body = _TC.pack(0, 0, 0, interface, handle, parent, info)
        self._tell(RTM_NEWTFILTER, body + _attribute(TCA_KIND, b"bpf\0") + _attribute(TCA_OPTIONS, what), NLM_F_NEW)
        return Classifier(interface, parent, handle, info, b"bpf\0", name, 0)

    def detach(self, one: Classifier) -> None:
        """Raises OSError."""
        kind = _attribute(TCA_KIND, one.kind)
        self._tell(RTM_DELTFILTER, _TC.pack(0, 0, 0, one.interface, one.handle, one.parent, one.info) + kind)

    def remove_clsact(self, interface: int) -> None:
        """Raises OSError."""
        kind = _attribute(TCA_KIND, b"clsact\0")
        self._tell(RTM_DELQDISC, _TC.pack(0, 0, 0, interface, CLSACT_HANDLE, CLSACT_PARENT, 0) + kind)

    def close(self) -> None:
        self._sock.close()

    def _tell(self, kind: int, body: bytes, flags: int = 0) -> None:
        list(self._ask(kind, NLM_F_ACK | flags, body))

    def _ask(self, kind: int, flags: int, body: bytes) -> Iterator[Reply]:
        self._number += 1
        self._sock.send(_HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, self._number, 0) + body)
        while True:
            for reply_kind, _, number, payload in messages(self._sock.recv(RECEIVE_BYTES)):
                if number != self._number:
                    continue
                if reply_kind == NLMSG_DONE:
                    return
                if reply_kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    if code:
                        raise OSError(code, f"traffic control: {errno.errorcode.get(code, code)}")
                    return
                yield parse(payload, _TC)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value.ljust((len(value) + 3) & ~3, b"\0")


def _classifier(reply: Reply) -> Classifier:
    options = parse(reply.attributes.get(TCA_OPTIONS, b""), _OPTIONS).attributes
    return Classifier(
        interface=reply.fields[3],
        handle=reply.fields[4],
        parent=reply.fields[5],
        info=reply.fields[6],
        kind=reply.attributes.get(TCA_KIND, b""),
        name=options.get(TCA_BPF_NAME, b"").rstrip(b"\0"),
        program=int.from_bytes(options.get(TCA_BPF_ID, b"")[:4], "little"),
    )


def sweep() -> int:
    """Remove the library's classifiers whose process is gone, and clsact below which nothing is then. How many of both.

    For the calling thread's network namespace. Of clsact that another program made nothing is lost: an empty one does
    nothing. Raises OSError.
    """
    with contextlib.closing(TrafficControl()) as control:
        there = {interface: control.classifiers(interface) for interface in control.clsact()}
        ours = [one for found in there.values() for one in found if one.name.startswith(PROGRAMS)]
        held = programs_held() if ours else frozenset()  # after them: what is attached by now was held before
        dead = [one for one in ours if one.program not in held]
        for one in dead:
            with gone():
                control.detach(one)
        return len(dead) + tidy(control, {one.interface for one in dead})


@contextlib.contextmanager
def gone() -> Iterator[None]:
    """What is not there any more (ENOENT), or lay on an interface or below a clsact that is not, is no error."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
            raise


def tidy(control: TrafficControl, interfaces: Collection[int] | None = None) -> int:
    """Remove each clsact (of these interfaces) with nothing below it; how many. Never raises."""
    removed = 0
    with contextlib.suppress(OSError):
        for interface in control.clsact() if interfaces is None else control.clsact().intersection(interfaces):
            if not control.classifiers(interface):
                control.remove_clsact(interface)
                removed += 1
    return removed


def programs_held() -> frozenset[int]:
    """The ids of the BPF programs that some process has a descriptor of."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{name}") == "anon_inode:bpf-prog":
                        found.add(_program_of(f"/proc/{pid}/fdinfo/{name}"))
    return frozenset(found)


def _program_of(path: str) -> int:
    with open(path) as file:
        return next((int(line.split()[1]) for line in file if line.startswith("prog_id:")), 0)
