"""UDP flows of a session that rules of nftables divert: what is counted of each, whose it is, and when its socket ends.

    rules ── NFLOG: a flow's first datagram ──► drain() ── sock_diag ──► its socket ── /proc ──► who has that
      └───── sets: datagrams sent, received ◄── counts(), take()           └── ten times a second: there? ──► released

To `udp_table` it is what `udp_hook` is. There is no call to see: a socket that is only connected is no flow, and what a
connected one sends is counted as well. Whose a flow is, is looked up as soon as its first datagram is heard of. A
program that has closed its socket by then is unknown, and so are those for which the time is too short: LOOKUPS_S of
computing time in each tenth of a second.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial

from mitmsec.core.model import Confidence, Direction, Transport
from mitmsec_redirect import netns, nft_udp_rules
from mitmsec_redirect.backend import SocketOwner
from mitmsec_redirect.hashes import Remembered
from mitmsec_redirect.netlink import NetlinkBroken
from mitmsec_redirect.nflog import PacketLog
from mitmsec_redirect.nfnetlink import Element, Nfnetlink
from mitmsec_redirect.nft_udp_rules import FLOWS, KEPT_MS, RECEIVED, SENT, Ends, UdpGroups
from mitmsec_redirect.sockdiag import FoundSocket
from mitmsec_redirect.socket_owner import SOURCE, SocketOwners
from mitmsec_redirect.socket_table import DiagTable
from mitmsec_redirect.udp_hook import Drained
from mitmsec_redirect.udp_log import FirstDatagram, first_datagrams
from mitmsec_redirect.udp_records import Counts, SocketReleased, UdpFlow

LOOKUPS_S, WINDOW_S = 0.02, 0.1
POLL_S, POLL_SHARE = 0.1, 0.02  # how often at most, and for how much of the time
UNFOUND_LIMIT = 4096
RELEASED_LIMIT = 128  # told at once; each costs a tenth of a millisecond


class NftUdp:
    """The flows of one table's session. Made by `open`; not thread-safe."""

    def __init__(
        self,
        logs: tuple[PacketLog, PacketLog],
        sets: FlowSets,
        owners: Owners,
        sockets: DiagTable,
        begun: Callable[[], int],
    ) -> None:
        self._log, self._names = logs
        self._sets, self._owners, self._sockets, self._begun = sets, owners, sockets, begun
        self._ends: dict[bytes, list[Ends]] = {}  # by the flow's key; one, unless the socket has several addresses
        self._cookies: dict[bytes, int] = {}
        self._unfound: Remembered[Ends, bool] = Remembered(UNFOUND_LIMIT)
        self._gone: deque[int] = deque()
        self._numbers = itertools.count(2**64 - 1, -1)  # of sockets that were gone when they were looked for
        self._heard = self._overruns = 0
        self._poll_at_s = 0.0
        self._detached = False
        self.lost = 0
        """How often a flow could not be told so far."""

    @classmethod
    def open(
        cls, netns_fd: int | None, table: str, link: Nfnetlink, owners: SocketOwners, begun: Callable[[], int]
    ) -> NftUdp:
        """For the table's rules, in that network namespace; `begun` says what they have counted as NEW.

        Raises OSError where the kernel has no NFLOG, with nothing left behind.
        """
        with ExitStack() as held:
            logs = []
            for snaplen_bytes in (nft_udp_rules.HEAD_BYTES, nft_udp_rules.DNS_BYTES):
                logs.append(netns.inside(netns_fd, partial(PacketLog, snaplen_bytes)))
                held.callback(logs[-1].close)
            sockets = netns.inside(netns_fd, DiagTable)
            held.pop_all()
            return cls((logs[0], logs[1]), FlowSets(link, table), Owners(owners), sockets, begun)

    @property
    def groups(self) -> UdpGroups:
        """For the rules."""
        return UdpGroups(flows=self._log.group, dns=self._names.group)

    @property
    def names_fd(self) -> int:
        """For `DnsLog`; ours, so duplicate it by passing it on. Nobody here reads it."""
        return self._names.fileno()

    # -- what it sees --------------------------------------------------------------------------------------------------
    def fileno(self) -> int:
        """Readable when `drain` has something."""
        return self._log.fileno()

    def drain(self, most: int) -> Drained:
        """What is new since the last call, in order: the first `most` flows, and sockets that have ended."""
        flows = self._read()
        if flows or self._log.overruns > self._overruns:
            counted = self._begun()
            flows += self._read()  # so that all that was counted has been read, or was dropped
            self._heard += len(flows)
            self.lost = max(self.lost, counted - self._heard)
            self._begin_anew()
        for flow in (beyond := flows[most:]):
            self.take(flow.key)  # its next datagram begins it anew, when there may be room
        return Drained([*flows[:most], *self._released()], len(beyond), beyond[-1] if beyond else None)

    def _read(self) -> list[UdpFlow]:
        """What has come, and at once whose it is: a program may end at any moment."""
        found: list[FirstDatagram] = []
        while (message := self._log.receive()) is not None:
            found += first_datagrams(message)
        return [self._flow(*one) for one in zip(found, self._owners.of(found), strict=True)]

    def _begin_anew(self) -> None:
        """After an overrun the rules know flows that nobody was told of: then all begin again."""
        if self._log.overruns > self._overruns:
            self._overruns = self._log.overruns
            self._sets.clear()

    def _flow(self, one: FirstDatagram, whose: tuple[int | None, SocketOwner]) -> UdpFlow:
        found, owner = whose
        cookie = next(self._numbers) if found is None else found
        flow = UdpFlow(
            socket_cookie=cookie,
            remote=one.ends.remote,
            local=one.ends.local,
            direction=Direction.OUTBOUND if one.sent else Direction.INBOUND,
            connected=False,
            pid=owner.pid,
            uid=-1 if owner.uid is None else owner.uid,
            comm=owner.comm,
            at_ns=time.monotonic_ns(),
            owner=owner,
        )
        ends = self._ends.setdefault(flow.key, [])
        if one.ends not in ends:
            ends.append(one.ends)
        if found is not None or self._is_unfound_first(one.ends):
            self._cookies[flow.key] = cookie
        return flow

    def _is_unfound_first(self, ends: Ends) -> bool:
        """A socket that was not found is taken for one that has gone, but only once: it may just not be found."""
        is_first = self._unfound.find(ends) is None
        self._unfound.keep(ends, True)
        return is_first

    # -- what is counted -----------------------------------------------------------------------------------------------
    def counts(self, key: bytes) -> Counts | None:
        """What is counted of the flow so far; None: it has ended, or the rules were removed meanwhile."""
        return self._sets.counts(self._ends.get(key, ()), remove=False)

    def take(self, key: bytes) -> Counts | None:
        """The same, and the flow is over: its next datagram begins another."""
        self._cookies.pop(key, None)
        return self._sets.counts(self._ends.pop(key, ()), remove=not self._detached)

    # -- sockets that end ----------------------------------------------------------------------------------------------
    def _released(self) -> list[SocketReleased]:
        began_s = time.monotonic()
        if began_s >= self._poll_at_s and self._cookies and not self._gone:
            self._gone.extend(self._ended())
            now_s = time.monotonic()
            self._poll_at_s = now_s + max(POLL_S, (now_s - began_s) / POLL_SHARE)
        now_ns = time.monotonic_ns()
        some = range(min(len(self._gone), RELEASED_LIMIT))
        return [SocketReleased(self._gone.popleft(), now_ns) for _ in some]

    def _ended(self) -> list[int]:
        try:
            there = self._sockets.udp_cookies()
            doubtful = {cookie: key for key, cookie in self._cookies.items() if cookie not in there}
            return [cookie for cookie, key in doubtful.items() if not self._owners.has(cookie, self._ends[key][-1])]
        except OSError:  # the kernel could not say; it is asked again
            return []

    # -- its end -------------------------------------------------------------------------------------------------------
    def detach(self) -> None:
        """The rules see nothing more: what is counted can stay where it is. Idempotent."""
        self._detached = True

    def close(self) -> None:
        """Idempotent."""
        for one in (self._log, self._names, self._sockets):
            one.close()


class FlowSets:
    """The sets of one table."""

    def __init__(self, link: Nfnetlink, table: str) -> None:
        self._link, self._table = link, table

    def counts(self, flows: list[Ends] | tuple[()], *, remove: bool) -> Counts | None:
        """Of all these together; None: nothing is counted, or the kernel does not say."""
        found = [one for ends in flows if (one := self._one(ends, remove=remove)) is not None]
        if not found:
            return None
        sent, received = sum(one.sent for one in found), sum(one.received for one in found)
        return Counts(sent, received, max(one.last_ns for one in found), connected=False)

    def _one(self, ends: Ends, *, remove: bool) -> Counts | None:
        key = ends.key
        try:
            sent, received = (self._link.element(self._table, ends.set(name), key) for name in (SENT, RECEIVED))
            if remove:
                there = {SENT: sent, RECEIVED: received}
                names = [ends.set(name) for name, one in there.items() if one is not None]
                self._link.remove(self._table, [ends.set(FLOWS), *names], key)
        except (OSError, NetlinkBroken):  # somebody else may have removed the rules
            return None
        return _counts(sent, received)

    def clear(self) -> None:
        """Nothing is known of any flow."""
        with contextlib.suppress(OSError):  # no table; it is made anew
            for name in nft_udp_rules.set_names():
                self._link.empty(self._table, name)


def _counts(sent: Element | None, received: Element | None) -> Counts | None:
    there = [one for one in (sent, received) if one is not None]
    if not there:
        return None
    since_ms = KEPT_MS - max(one.left_ms for one in there)
    last_ns = time.monotonic_ns() - since_ms * 1_000_000
    return Counts(sent.packets if sent else 0, received.packets if received else 0, last_ns, connected=False)


class Owners:
    """Who has the sockets of new flows, as long as there is time: for each window of WINDOW_S, LOOKUPS_S.

    Within a window a socket that was found is not looked for again.
    """

    def __init__(self, owners: SocketOwners) -> None:
        self._owners = owners
        self._window_s = self._spent_s = 0.0
        self._known: dict[int, SocketOwner] = {}

    def of(self, new: list[FirstDatagram]) -> list[tuple[int | None, SocketOwner]]:
        """The cookie of each one's socket, None: there is none any more, and who has it. Never raises."""
        if time.monotonic() - self._window_s > WINDOW_S:
            self._window_s, self._spent_s = time.monotonic(), 0.0
            self._known.clear()
        found = [self._found(one.ends, one.interface) for one in new]
        self._look_for({one.cookie: one for one in found if one is not None and one.cookie not in self._known})
        return [self._told(*one) for one in zip(new, found, strict=True)]

    def _look_for(self, sockets: Mapping[int, FoundSocket]) -> None:
        if not sockets or self._spent_s >= LOOKUPS_S:
            return
        began_s = time.thread_time()
        self._known |= self._owners.holders(sockets.values(), LOOKUPS_S - self._spent_s)
        self._spent_s += time.thread_time() - began_s

    def _told(self, one: FirstDatagram, found: FoundSocket | None) -> tuple[int | None, SocketOwner]:
        if found is None:
            return None, SocketOwner(SOURCE, Confidence.UNKNOWN, uid=one.uid)
        owner = self._known.get(found.cookie)
        return found.cookie, owner or SocketOwner(SOURCE, Confidence.UNKNOWN, uid=found.uid)

    def has(self, cookie: int, ends: Ends) -> bool:
        """The socket is still the one that gets what comes for this flow."""
        found = self._found(ends)
        return found is not None and found.cookie == cookie

    def _found(self, ends: Ends, interface: int = 0) -> FoundSocket | None:
        try:
            return self._owners.found(ends.local, ends.remote, Transport.UDP, interface)
        except OSError:  # the kernel cannot be asked
            return None
