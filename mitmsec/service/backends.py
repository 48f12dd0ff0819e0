"""Which backend diverts a session, and whose its connections are, as far as that differs from one to the other.

    auto ──► connect_hook, where this kernel has what it needs ─ else ─► nftables ─ else ─► refused, for both reasons
    named ─► that one, or refused for its own reason           (windivert, on Linux, only if it is named)

The choice is made once, by opening: what opens is what diverts until the session ends.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import assert_never

from msgspec.structs import replace

from mitmsec.core.messages import Whose
from mitmsec.core.model import Confidence, OnFailure, Process, Quic, Value
from mitmsec.service.control import BackendChoice
from mitmsec.service.divert_backend import DivertBackend
from mitmsec_redirect.backend import Backend, BackendUnavailable, SocketOwner
from mitmsec_redirect.bpf import EbpfUnavailable, ProgramRejected
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.executable_paths import ExecutablePaths
from mitmsec_redirect.nftables import Nftables
from mitmsec_redirect.owner import Owner
from mitmsec_redirect.probe import KERNEL_FLOOR, kernel_release, kernel_version
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.records import Missed
from mitmsec_redirect.socket_owner import SOURCE, attributed
from mitmsec_redirect.steps import Selection


class Terms(Value, frozen=True):
    """What is to be diverted, where to, and under which terms: the same for every backend."""

    cgroup: Path
    ports: tuple[int, int | None]  # of the gate's listeners, IPv4 and IPv6
    namespace: Callable[[], int]  # cookie of the listeners' network namespace; may raise OSError
    netns_fd: int
    on_failure: OnFailure
    quic: Quic
    pins: Callable[[], Path | None]  # where a connect hook outlives us, if it is to; makes room for it, may raise
    label: str = ""  # of the session: its state and its name
    selection: Selection | None = None  # of a standing service, which rules of nftables cannot serve
    paths: ExecutablePaths | None = None  # what a connect hook is to fill
    has_quic_relay: bool = False  # the gate hears UDP at these ports
    keep: Callable[[Path], None] = lambda folder: None  # pins there what a selection needs; before a diverter begins


async def opened(choice: BackendChoice, terms: Terms, say: Callable[[str], None]) -> Backend:
    """The backend, at work. `say` is told why `auto` took another one than the first.

    Raises BackendUnavailable, ChildFailed, ProgramRejected, OSError, with nothing left behind.
    """
    match choice:
        case BackendChoice.CONNECT_HOOK:
            return connect_hook(terms)
        case BackendChoice.NFTABLES:
            return nftables(terms)
        case BackendChoice.WINDIVERT:
            return await windivert(terms, say)
        case BackendChoice.AUTO:
            return _first(terms, say)
        case _:
            assert_never(choice)


def _first(terms: Terms, say: Callable[[str], None]) -> Backend:
    try:
        _require_floor(kernel_release())
        return connect_hook(terms)
    except (BackendUnavailable, ProgramRejected) as error:
        hook = error
    why = hook.reason if isinstance(hook, BackendUnavailable) else str(hook)
    say(f"connect_hook cannot be used: {why}; nftables is tried")
    try:
        return nftables(terms)
    except BackendUnavailable as rules:
        raise BackendUnavailable(f"connect_hook: {why}; nftables: {rules.reason}", rules.remedy) from hook


def _require_floor(release: str) -> None:
    """On an older kernel the programs may load, and the gate could still not read their maps."""
    if kernel_version(release) < KERNEL_FLOOR:
        raise EbpfUnavailable(f"Linux {release} is older than 5.19", "Use Linux 5.19 or later.")


def connect_hook(terms: Terms) -> ConnectHook:
    """Raises EbpfUnavailable, ProgramRejected, OSError."""
    return ConnectHook.open(
        terms.cgroup,
        port_v4=terms.ports[0],
        port_v6=terms.ports[1],
        netns_cookies={terms.namespace()},
        on_failure=terms.on_failure,
        quic=terms.quic,
        pin_folder=terms.pins(),
        netns_fd=terms.netns_fd,
        selection=terms.selection,
        paths=terms.paths,
        has_quic_relay=terms.has_quic_relay,
    )


def nftables(terms: Terms) -> Nftables:
    """Raises BackendUnavailable, OSError."""
    if terms.selection is not None:
        raise BackendUnavailable("rules of nftables cannot select single programs", "Use the connect hook.")
    return Nftables.open(
        terms.cgroup,
        port_v4=terms.ports[0],
        port_v6=terms.ports[1],
        on_failure=terms.on_failure,
        quic=terms.quic,
        netns_fd=terms.netns_fd,
    )


async def windivert(terms: Terms, say: Callable[[str], None]) -> DivertBackend:
    """Raises BackendUnavailable, ChildFailed, OSError."""
    return await DivertBackend.open(
        terms.cgroup,
        gate_port=terms.ports[0],
        on_failure=terms.on_failure,
        quic=terms.quic,
        network=terms.netns_fd,
        label=terms.label,
        log=say,
        selection=terms.selection,
        pin_folder=None if terms.selection is None else terms.pins(),
        keep=terms.keep,
    )


async def ended(backend: Backend) -> None:
    """After its `close`: nothing of it is left."""
    if isinstance(backend, DivertBackend):
        await backend.ended()


def found(backend: Backend, asked: Whose, processes: ProcessTable) -> Owner | None:
    """Whose a connection is of which nothing was written down at connect(). None: the question says it itself."""
    if asked.told is not None:
        return _told(asked.told, asked, processes)
    if asked.client is None or asked.remote is None:
        return None
    owner = backend.owner(asked.client, asked.remote)
    return None if owner is None else attributed(owner, processes)


def _told(process: Process, asked: Whose, processes: ProcessTable) -> Owner:
    """As it was read before its connection began; its hash may still be on the way.

    One that had ended by then, the session may have known while it lived. Who has executed something else between
    connect() and being read is not taken for that, where the session was told of it.
    """
    then_ns = asked.connected_ns or None
    now = processes.whose(asked.pid, asked.uid, asked.comm, then_ns)
    is_it = (now.process.started, now.process.exe) == (process.started, process.exe) and process.exe is not None
    if then_ns is not None and now.process.confidence is Confidence.KERNEL:
        is_another = process.confidence is Confidence.KERNEL and not is_it and processes.has_seen(asked.pid, then_ns)
        if is_another or process.confidence is Confidence.INFERRED:
            return now
    if process.sha256 is not None or not is_it:
        return Owner(process)
    return Owner(replace(process, sha256=now.process.sha256), now.sha256)


def found_missed(missed: Missed, processes: ProcessTable) -> Owner | None:
    """Who tried what was not diverted, where that was looked up afterwards. None: the kernel has said it."""
    if missed.process is not None:
        return Owner(missed.process)
    if missed.confidence is Confidence.KERNEL:
        return None
    uid = missed.uid if missed.uid >= 0 else None
    owner = SocketOwner(SOURCE, missed.confidence, pid=missed.pid, uid=uid, comm=missed.comm)
    return attributed(owner, processes)
