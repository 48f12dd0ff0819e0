"""The redirect backend for Linux without eBPF: rules of a table of its own send a cgroup's connections to the gate.

    supervisor ── nft -f ──► table: judge, divert, guard; counters; `alive`       (nft_rules draws the packet's way)
        ▲  │                     │                           ▲
        │  └── each beat heard ──┼───────────────────────────┘  lasts a second
        │ eventfd                │ NFLOG: what was not diverted
      gate ◄── redirected ───────┘  UDP passes, and is counted: `nft_udp`
        └── SO_ORIGINAL_DST: where it was going          owner: conntrack → sock_diag → /proc, by the supervisor

The table survives its owner. `alive` runs empty within a second: then the rules let everything pass (`open`) or refuse
(`closed`), until `nft.reap` removes them. Should somebody else flush the ruleset, the next beat finds the table gone,
makes it anew and reports the trouble.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path

from msgspec.structs import replace

from mitmsec.core.model import Confidence, Endpoint, OnFailure, Quic, Transport
from mitmsec_redirect import netns, nft, nft_level, nft_rules, nft_udp_rules
from mitmsec_redirect.backend import (
    Backend,
    BackendFault,
    BackendKind,
    BackendUnavailable,
    GateGround,
    SocketOwner,
    Watched,
)
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.netlink import NetlinkBroken
from mitmsec_redirect.nflog import Logged, PacketLog
from mitmsec_redirect.nfnetlink import Nfnetlink
from mitmsec_redirect.nft import RulesRefused
from mitmsec_redirect.nft_rules import Terms
from mitmsec_redirect.nft_udp import NftUdp
from mitmsec_redirect.pulse import Pulse
from mitmsec_redirect.records import Missed, Reason
from mitmsec_redirect.shortfall import Shortfall, Untold
from mitmsec_redirect.socket_owner import SocketOwners

NFT_ROOT = Path("/sys/fs/cgroup")  # where nft looks for cgroups, whatever is mounted where
MISSED_LIMIT = 1024  # in one collection, of which there are fifty a second; the rest waits, or is counted only
OWNERS_LIMIT = 2  # looked up in one collection: each may take milliseconds
PROTOCOLS = (bytes([socket.IPPROTO_TCP]), bytes([socket.IPPROTO_UDP]))
KERNEL_REMEDY = (
    "Use Linux 5.13 or later with CONFIG_NFT_SOCKET, CONFIG_NFT_REDIR, CONFIG_NFT_REJECT_INET, CONFIG_NFT_LOG, "
    "CONFIG_NFT_LIMIT and CONFIG_SOCK_CGROUP_DATA, and nftables 0.9.9 or later."
)


class Trouble(StrEnum):
    """What may go wrong with the rules themselves. The words stand in fault events."""

    BEAT_NOT_TAKEN = "beat_not_taken"  # the kernel does not take the heartbeat: `on_failure` within a second
    RULES_RESTORED = "rules_restored"  # somebody else removed them, and until now nothing was diverted


class Nftables(Backend):
    """The table of one session. Made by `open`; not thread-safe."""

    kind = BackendKind.NFTABLES

    def __init__(self, terms: Terms, cgroup: SessionCgroup, netns_fd: int | None, held: ExitStack) -> None:
        """Everything but the rules."""
        self._netns, self._held = netns_fd, held
        self._link = netns.inside(netns_fd, Nfnetlink)
        held.callback(self._link.close)
        self._owners = netns.inside(netns_fd, lambda: SocketOwners(cgroup.pids))
        held.callback(self._owners.close)
        self._log = _log(netns_fd)
        if self._log is not None:
            held.callback(self._log.close)
        self.udp: NftUdp | None = None
        """What is seen of UDP; None: nothing, and `shortfall` says why."""
        self.shortfall: Shortfall | None = None
        self._see_udp(terms.table)
        groups = None if self.udp is None else self.udp.groups
        self._terms = replace(terms, log_group=None if self._log is None else self._log.group, udp=groups)
        self._pulse_fd = Pulse.new()
        held.callback(os.close, self._pulse_fd)
        self._pulse = Pulse(self._pulse_fd)
        self._namespace = _namespace(netns_fd)
        self._told: dict[Reason, int] = {}
        self._seen: dict[str, int] = {}  # what the table's counters said last
        self._before: dict[str, int] = {}  # the same of tables that somebody else removed
        self._troubles: list[BackendFault] = []
        self._detached = self._closed = False
        self._beat_ns = 0

    def _see_udp(self, table: str) -> None:
        try:
            self.udp = NftUdp.open(self._netns, table, self._link, self._owners, self._begun)
        except OSError as error:
            self.shortfall = Shortfall(Untold.UDP, str(error))
        else:
            self._held.callback(self.udp.close)

    def _begun(self) -> int:
        return self._counts().get(nft_udp_rules.NEW, 0)

    @classmethod
    def open(
        cls,
        cgroup_path: Path | str,
        *,
        port_v4: int,
        port_v6: int | None,
        on_failure: OnFailure,
        quic: Quic,
        netns_fd: int | None = None,
        table: str | None = None,
    ) -> Nftables:
        """From now on the connections of the cgroup's sockets, in that network namespace, go to the gate's listeners.

        `table` names the table (default: as the cgroup); there must not be one of that name. The gate has one second
        for its first heartbeat. Raises BackendUnavailable, FileExistsError, OSError, ValueError, with nothing left.
        """
        cgroup = SessionCgroup(Path(cgroup_path))
        terms = Terms(
            table=table or cgroup.path.name,
            owner=nft.owner_remark(),
            cgroup=nft_path(cgroup.path),
            level=1,
            port_v4=port_v4,
            port_v6=port_v6,
            on_failure=on_failure,
            quic=quic,
            log_group=None,
        )
        with ExitStack() as held:
            if netns_fd is not None:
                netns_fd = os.dup(netns_fd)
                held.callback(os.close, netns_fd)
            one = cls(terms, cgroup, netns_fd, held)
            try:
                one._terms = replace(one._terms, level=nft_level.level_of(cgroup, terms))
                nft.load(nft_rules.create(one._terms), netns_fd)
            except RulesRefused as error:
                raise BackendUnavailable(f"these rules are not taken: {error}", KERNEL_REMEDY) from error
            one._held = held.pop_all()
            return one

    # -- for the gate and the supervisor's loop ------------------------------------------------------------------------
    @property
    def ground(self) -> GateGround:
        """The eventfd of the heartbeat; the origin stands on each accepted socket."""
        return GateGround(kind=self.kind, heartbeat_fd=self._pulse_fd)

    @property
    def watched(self) -> Sequence[Watched]:
        """The gate's beats."""
        return (Watched(self._pulse_fd, self.hear),)

    def hear(self) -> None:
        """Pass on the gate's beat, if there was one. What fails is a trouble, and the next beat tries again."""
        if not self._pulse.heard():
            return
        self._beat_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        if self._detached:
            return
        try:
            self._renew()
        except (OSError, BackendUnavailable):
            self._troubles.append(BackendFault(Trouble.BEAT_NOT_TAKEN))

    def _renew(self) -> None:
        """The rules live another second. Somebody else may have removed them: many firewalls begin by flushing all."""
        try:
            self._link.renew(self._terms.table, nft_rules.ALIVE, PROTOCOLS)
        except FileNotFoundError:
            self._before, self._seen = dict(self._added_up()), {}
            nft.load(nft_rules.create(self._terms), self._netns)
            self._troubles.append(BackendFault(Trouble.RULES_RESTORED))

    # -- while it runs -------------------------------------------------------------------------------------------------
    def set_port(self, port_v4: int, port_v6: int | None) -> None:
        """Other listeners from now on: a gate was started anew, and has one second for its first heartbeat."""
        self._terms = replace(self._terms, port_v4=port_v4, port_v6=port_v6)
        nft.load(nft_rules.replace(self._terms), self._netns)
        self._link.renew(self._terms.table, nft_rules.ALIVE, PROTOCOLS)

    def stall(self) -> None:
        """Follow `on_failure` from this moment; the gate's next heartbeat ends that."""
        self._pulse.heard()  # what it beat before does not count
        with contextlib.suppress(FileNotFoundError):  # somebody else's removal; the next beat finds it, too
            self._link.empty(self._terms.table, nft_rules.ALIVE)

    @property
    def last_beat_ns(self) -> int:
        """CLOCK_MONOTONIC of when the gate's last beat was heard; 0: none yet."""
        return self._beat_ns

    def owner(self, client: Endpoint, origin: Endpoint) -> SocketOwner:
        """Whose the accepted connection from `client` is, that was going to `origin`.

        Conntrack says which socket that is: where two connections from one local port would have become the same, it
        has given one of them another source port. Without conntrack's word the socket would be a guess: unknown.
        """
        is_v6 = client.is_v6
        port = self._terms.port_v6 if is_v6 else self._terms.port_v4
        gate = Endpoint(address="::1" if is_v6 else "127.0.0.1", port=port or 0)
        try:
            original = self._link.original(gate, client)
        except (OSError, NetlinkBroken):
            original = None
        if original is None or original[1] != origin:
            return SocketOwner("conntrack", Confidence.UNKNOWN)
        return self._owner(*original)

    def _owner(self, local: Endpoint, remote: Endpoint, transport: Transport = Transport.TCP) -> SocketOwner:
        try:
            return self._owners.owner(local, remote, transport)
        except OSError:  # the kernel cannot be asked
            return SocketOwner("sock_diag", Confidence.UNKNOWN)

    @property
    def missed_fd(self) -> None:
        """The kernel's log is read bit by bit."""

    def missed(self) -> list[Missed]:
        """What was not diverted since the last call, oldest first, and who did it as far as that can still be found."""
        found = self._log.drain(MISSED_LIMIT) if self._log is not None else []
        owners: dict[tuple[Endpoint, Endpoint], SocketOwner] = {}
        for one in found:
            self._told[one.reason] = self._told.get(one.reason, 0) + 1
            ends = one.heading.source, one.heading.destination
            if ends not in owners and len(owners) < OWNERS_LIMIT:
                owners[ends] = self._owner(*ends, one.heading.transport)
        return [self._missed(one, owners.get((one.heading.source, one.heading.destination))) for one in found]

    def _missed(self, logged: Logged, owner: SocketOwner | None) -> Missed:
        heading = logged.heading
        return Missed(
            reason=logged.reason,
            transport=heading.transport,
            remote=heading.destination,
            pid=owner.pid if owner is not None else 0,
            uid=logged.uid if logged.uid is not None else -1,
            comm=owner.comm if owner is not None else "",
            at_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC),
            netns=self._namespace,
            denied=logged.denied,
            confidence=owner.confidence if owner is not None else Confidence.UNKNOWN,
        )

    def lost(self) -> Mapping[Reason, int]:
        """How many packets of each reason `missed` has not told: not yet collected, or more than the queue took."""
        counts = self._counts()
        untold = {reason: counts.get(reason, 0) - self._told.get(reason, 0) for reason in nft_rules.REASONS}
        return {reason: count for reason, count in untold.items() if count > 0}

    def troubles(self) -> list[BackendFault]:
        """`Trouble`s since the last call."""
        found, self._troubles = self._troubles, []
        return found

    @property
    def diverted(self) -> int:
        """Connections sent to the gate so far."""
        return self._counts().get(nft_rules.DIVERTED, 0)

    def _counts(self) -> Mapping[str, int]:
        """All counts so far; where the kernel cannot be asked, and after the end, the last ones known."""
        if not self._closed:
            with contextlib.suppress(OSError, NetlinkBroken):
                self._seen = self._link.counters(self._terms.table) or self._seen
        return self._added_up()

    def _added_up(self) -> Mapping[str, int]:
        return {name: self._before.get(name, 0) + self._seen.get(name, 0) for name in (*self._before, *self._seen)}

    # -- its end -------------------------------------------------------------------------------------------------------
    def detach(self) -> None:
        """Divert nothing more, at once. Diverted connections live on until `close`."""
        if not self._detached:
            self._detached = True
            with contextlib.suppress(RulesRefused, BackendUnavailable):  # no table: nothing is diverted; `close` tells
                nft.load(nft_rules.detach(self._terms), self._netns)

    def close(self) -> None:
        """The table goes, and with it what still runs through it. Idempotent."""
        if not self._closed:
            self._counts()
            self._closed = self._detached = True
            try:
                nft.load(nft_rules.delete(self._terms.table), self._netns)
            finally:
                self._held.close()

    def __enter__(self) -> Nftables:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def nft_path(cgroup: Path) -> str:
    """How nft names the cgroup: relative to /sys/fs/cgroup, even if cgroup2 is mounted elsewhere.

    nft itself looks the path up there and tells the kernel only the number of what it finds. Raises
    BackendUnavailable where that would be another cgroup.
    """
    path = os.path.relpath(cgroup, NFT_ROOT)
    with contextlib.suppress(OSError):
        if os.path.samestat(os.stat(NFT_ROOT / path), os.stat(cgroup)):
            return path
    raise BackendUnavailable(
        f"nft cannot find the cgroup {cgroup} from {NFT_ROOT}", f"Mount a file system at {NFT_ROOT}."
    )


def _log(netns_fd: int | None) -> PacketLog | None:
    """None where the kernel has no NFLOG: then missed connections are counted, but not named."""
    try:
        return netns.inside(netns_fd, PacketLog)
    except OSError:
        return None


def _namespace(netns_fd: int | None) -> int:
    try:
        return netns.inside(netns_fd, netns.current_cookie)
    except OSError:  # before Linux 5.14
        return 0
