"""What of the connect hook and of nftables works on this machine, found out by doing it; nothing stays behind.

The connect hook's floor is Linux 5.19. What needs which release:

    5.3   socket storage and ctx->sk in connect programs       5.9   detaching a link
    5.7   links on cgroups, bpf_get_netns_cookie               5.14  SO_NETNS_COOKIE
    5.8   getpeername/getsockname programs, run statistics     5.18  bpf_set_retval
    5.19  map element commands for the unprivileged gate when kernel.unprivileged_bpf_disabled is set
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from msgspec.structs import replace

from mitmsec.core.model import OnFailure, Quic, Value
from mitmsec_redirect import bpffs, netns
from mitmsec_redirect.backend import BackendKind, BackendUnavailable
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.cgroup import SessionCgroup, cgroup2_root
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.executable_paths import ExecutablePaths
from mitmsec_redirect.inbound_hook import InboundHook
from mitmsec_redirect.nftables import Nftables
from mitmsec_redirect.udp_hook import UdpHook

KERNEL_FLOOR = (5, 19)
BACKEND = "backend"  # the check that says which one is taken
CALLERS = "callers"  # the check that is about what is told of who connects
FOR_CLOSED = "bpffs"  # the check that is about on_failure = closed alone
FIRST_PID_NAMESPACE = "pid:[4026531836]"
SIOCGIFFLAGS, IFF_UP = 0x8913, 0x1
CAPABILITIES = {  # without any one of them `mitmsec run` was seen to fail
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SYS_ADMIN": 21,
}


class Check(Value, frozen=True):
    """One thing that is needed, or with `optional` wanted. `remedy` says what to do where it is not `ok`."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    backend: str = ""  # which needs it, a BackendKind; empty: each does
    optional: bool = False  # without it a run works, and `detail` says what is less then


class Missing(Exception):
    """What is missing, and what to do about it."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


def checks() -> list[Check]:
    """Every need, in the order in which they build on each other, and last which backend is taken. Never raises."""
    found = list(_run())
    return [*found, taken(found)]


def taken(found: Sequence[Check]) -> Check:
    """The backend that `auto` takes where this was found: its own `backend` names it, empty where there is none."""
    for kind in (BackendKind.CONNECT_HOOK, BackendKind.NFTABLES):
        needed = [one for one in found if one.backend == kind and one.name != FOR_CLOSED and not one.optional]
        if all(check.ok for check in needed):
            return Check(name=BACKEND, ok=True, detail=f"{kind} is what `mitmsec run` takes", backend=kind)
    return Check(name=BACKEND, ok=False, detail="neither connect_hook nor nftables works here")


def _run() -> Iterator[Check]:
    hook, rules = BackendKind.CONNECT_HOOK, BackendKind.NFTABLES
    probes: tuple[tuple[str, Callable[[], str], str, str], ...] = (
        ("privilege", _privilege, "", ""),
        ("capabilities", _capabilities, "", ""),
        ("kernel", _kernel, "", hook),
        ("bpf", _bpf, "", hook),
        ("cgroup2", _cgroup2, "", ""),
        ("connect hook", _hook, "Use a kernel of at least 5.19 built with CONFIG_CGROUP_BPF.", hook),
        (CALLERS, _callers, "", hook),
        (FOR_CLOSED, _bpffs, "Needed for on_failure = closed only.", hook),
        ("network namespace", _namespace, "Use a kernel of at least 5.14.", hook),
        ("nftables", _nftables, "", rules),
        ("loopback", _loopback, "ip link set lo up", ""),
        ("pid namespace", _pid_namespace, "", ""),
    )
    for name, probe, remedy, backend in probes:
        lacking_it = Check(name=name, ok=False, detail="", backend=backend, optional=name == CALLERS)
        try:
            yield replace(lacking_it, ok=True, detail=probe())
        except Missing as missing:
            yield replace(lacking_it, detail=missing.detail, remedy=missing.remedy)
        except BackendUnavailable as error:
            yield replace(lacking_it, detail=error.reason, remedy=error.remedy)
        except OSError as error:
            yield replace(lacking_it, detail=str(error), remedy=remedy)


def _privilege() -> str:
    if os.geteuid() != 0:
        raise Missing(f"this is user {os.geteuid()}, not root", "Run it as root: sudo mitmsec …")
    return "root"


def _capabilities() -> str:
    """Root without them cannot make a state directory, confine a child or mount anything."""
    held = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if lacks := lacking(int(held[1], 16) if held else 0):
        remedy = "Run it with root's own capabilities; a container needs --privileged."
        raise Missing(f"not held: {', '.join(lacks)}", remedy)
    return "held"


def lacking(effective: int) -> list[str]:
    """The names of those that are needed and not in the set `effective`, a bit for each number."""
    return [name for name, number in CAPABILITIES.items() if not effective & 1 << number]


def _kernel() -> str:
    release = kernel_release()
    if kernel_version(release) < KERNEL_FLOOR:
        raise Missing(f"Linux {release} is older than 5.19", "Use Linux 5.19 or later, or the nftables backend.")
    return f"Linux {release}"


def kernel_release() -> str:
    """What the kernel that runs calls itself."""
    return os.uname().release


def kernel_version(release: str) -> tuple[int, int]:
    """Major and minor number of a release such as 6.1.0-13-amd64; (0, 0) for anything else."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _bpf() -> str:
    made = Map.create(MapKind.ARRAY, 4, 8, 1, "ms_probe")
    made.close()
    return "maps can be made"


def _cgroup2() -> str:
    root = cgroup2_root()
    with _cgroup():
        return f"{root}, cgroups can be made"


@contextlib.contextmanager
def _cgroup() -> Iterator[SessionCgroup]:
    cgroup = SessionCgroup.create("probe", f"{os.getpid()}")
    try:
        yield cgroup
    finally:
        cgroup.remove()


def _hook() -> str:
    """The programs themselves, attached to an empty cgroup: helpers, maps and attach types at once."""
    with _cgroup() as cgroup, _connect_hook(cgroup) as hook:
        partial = ", but destinations without a route are not refused" if hook.routes_partial else ""
        return f"{len(hook.run_counts())} programs load and attach{partial}"


def _connect_hook(cgroup: SessionCgroup, paths: ExecutablePaths | None = None) -> ConnectHook:
    return ConnectHook.open(
        cgroup.path,
        port_v4=1,
        port_v6=1,
        netns_cookies=(netns.current_cookie(),),
        on_failure=OnFailure.OPEN,
        quic=Quic.REFUSE,
        paths=paths,
    )


def _callers() -> str:
    """The programs of all hooks that tell of callers, with everything that they can tell."""
    with _cgroup() as cgroup, contextlib.closing(ExecutablePaths()) as paths:
        with _connect_hook(cgroup, paths) as hook, UdpHook.open(cgroup.path, quic=Quic.REFUSE, paths=paths) as udp:
            shortfall = hook.shortfall or udp.shortfall
        if shortfall is None:
            with InboundHook.open(cgroup.path, paths=paths) as inbound:
                shortfall = inbound.shortfall
    if shortfall is not None:
        raise Missing(str(shortfall), shortfall.remedy)
    return "process, program, and where that lies are told, though it may have ended"


def _nftables() -> str:
    """The rules themselves, for a cgroup that nobody else is in, and whether they find it."""
    with (
        _cgroup() as cgroup,
        Nftables.open(cgroup.path, port_v4=1, port_v6=1, on_failure=OnFailure.CLOSED, quic=Quic.REFUSE) as rules,
    ):
        less = rules.shortfall
    return "rules are taken, and find the cgroup" + (f"; {less}" if less is not None else "")


def _bpffs() -> str:
    folder = Path(tempfile.mkdtemp(prefix="mitmsec-probe-"))
    try:
        bpffs.mount(folder)
        return "a private bpffs can be mounted"
    finally:
        if not bpffs.unmount(folder):
            folder.rmdir()


def _namespace() -> str:
    return f"cookie {netns.current_cookie()}"


def _loopback() -> str:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        answer = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
    if not struct.unpack_from("16xH", answer)[0] & IFF_UP:
        raise Missing("lo is down in this network namespace", "ip link set lo up")
    return "lo is up"


def _pid_namespace() -> str:
    """The kernel names pids of the first namespace; in another one they would be somebody else's."""
    here = os.readlink("/proc/self/ns/pid")
    if here != FIRST_PID_NAMESPACE:
        raise Missing("this is not the machine's first pid namespace", "Run mitmsec outside of the container.")
    return "the machine's own"
