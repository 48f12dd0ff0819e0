"""Whose listeners the service leads to its gate: those of selected programs, however they came to listen, no others.

    listen()  ── kernel: selected, or undecided? ──► kept, and told ──► heard(): is it selected? ── no ──► forgotten
    before us, or under another policy ──► sweep(): who has it open? selected? ──┬──► kept
    of somebody else (systemd), and inherited ──► look(): who has just begun? ───┘
    who was found to have it has ended ─────────► look(): ──────────────────────────────────────────────► forgotten
                                                          └─ others have it open? sweep(): some of ours? ──► kept

A sweep reads what all selected processes have open, which takes a third of a second where they have 20,000 sockets. So
but for a change of the policy the reading is done beside the loop, and what it has found is acted on when that is over.

What somebody is found to have open may be an ancestor's as well that is not selected: it is left alone as long as that
has it open (`elders`). A look asks for that on the loop, and so only as far as that takes no time; the rest is a
sweep's.

A program that is still undecided as it listens is kept until it is judged. The gate asks once more whose a connection
is, so that of who is not selected nothing is decided and nothing recorded meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Mapping
from typing import Protocol

from mitmsec.core.model import Process, Value
from mitmsec.service.elders import Elders
from mitmsec.service.owners import told
from mitmsec_redirect import inbound_records, netns, steps
from mitmsec_redirect.inbound_records import Inbound
from mitmsec_redirect.open_listeners import OpenListener, holders, open_listeners
from mitmsec_redirect.processes import ProcessTable
from mitmsec_redirect.runs import RunMembers
from mitmsec_redirect.socket_owner import comm_of
from mitmsec_redirect.steering import LISTENERS_LIMIT, Steering

DOUBTFUL_LIMIT = 2 * LISTENERS_LIMIT
INHERITED_LIMIT = 64  # descriptors of a program that has just begun: listeners are passed on as the first of them
ENDED_S = 1.0  # how long those that were of a process that has ended are led at most
MANAGER = 1  # what systemd has open too waits for whom it starts next
LOOKED_AT_MOST = 4096  # descriptors of others, in a look: some 40 ms of the loop; twenty ancestors have 1,000 open
SEARCHED_MOST = 1 << 19  # in a search, or whoever has very many ancestors could keep it from ever ending
OURS_MOST = 64  # processes that are looked at again each second, for what their ancestors may have let go of


class Standing(Protocol):
    """A selection over all cgroups (mitmsec.service.standing), as far as listeners ask it."""

    processes: ProcessTable

    @property
    def selection(self) -> steps.Selection: ...
    def selects(self, process: Process) -> bool: ...
    def selected_pids(self) -> list[int]:
        """Who is selected now, or may be."""

    def newly_selected(self) -> tuple[list[int], int]:
        """Who has executed a program since the last call, and is selected; how many more than can be named."""

    def is_undecided(self, pid: int) -> bool: ...


class Found(Value, frozen=True):
    """What a search has read."""

    search: int  # its number
    kept: list[Inbound]
    there: dict[int, OpenListener]
    held: Mapping[int, int]
    theirs: frozenset[int]  # cookies of those that an ancestor has open that is not selected, as far as can be told


class Left(Value, frozen=True):
    """What a look leaves to a sweep."""

    begun: int  # programs that have begun, more than can be looked at so often
    passed_on: bool  # somebody else may have what was a process's that has ended, or whose it is cannot be told yet


class LedListeners:
    """Of one service. Not thread-safe, but for what `search` returns."""

    def __init__(self, scope: Standing, steering: Steering, network: int) -> None:
        self._scope, self._steering, self._network = scope, steering, network
        self._doubtful: dict[int, Inbound] = {}  # by cookie: whose process was undecided when it was last seen
        self._elders: dict[int, set[int]] = {}  # by cookie: which of ours have it open, beside somebody's ancestor
        self._searches = 0
        self._have_changed = False  # some who were ours as it was read what they have open, and are not now
        self._ended_at_s = time.monotonic()  # when it was last seen who has ended

    def sweep(self) -> None:
        """Bring what is kept in line with who listens and who is selected now, at once. Raises OSError."""
        self.swept(self.search()())

    def search(self) -> Callable[[], Found]:
        """A sweep's first part: what is returned reads for long, in any thread, and raises OSError."""
        self._scope.newly_selected()  # who is looked at now, with all others
        self._searches += 1
        number, kept, pids = self._searches, self._steering.kept(), list(self._scope.selected_pids())

        def read() -> Found:
            there = self._listeners()  # read later: who was kept before and is not there has ended
            held, elders = holders(pids), Elders(lambda: pids, MANAGER, SEARCHED_MOST)
            theirs = {cookie for cookie, one in there.items() if _is_theirs(elders, one, held) is not False}
            return Found(number, kept, there, held, frozenset(theirs))

        return read

    def swept(self, found: Found) -> None:
        """Its second. Where another has begun meanwhile, perhaps for another policy, it is left to that one."""
        if found.search != self._searches:
            return
        for one in found.kept:
            if one.cookie in found.there and self._is_selected(one):
                del found.there[one.cookie]
                self._note_doubt(one)
            else:
                self.forget(one.cookie)
        self._adopt(found.there, found.held, found.theirs, frozenset(self._scope.selected_pids()))

    def heard(self, one: Inbound, process: Process) -> None:
        """Somebody has begun to listen."""
        if not self._scope.selects(process):
            self.forget(one.cookie)
        else:
            self._note_doubt(one)

    def look(self) -> Left:
        """Time has passed: some may have been judged, some have begun with what others listen on.

        Raises OSError; then only a sweep brings all in line.
        """
        for one in [one for one in self._doubtful.values() if not self._scope.is_undecided(one.pid)]:
            del self._doubtful[one.cookie]
            if self._is_selected(one):
                self._steering.decided(one.cookie)
            else:
                self.forget(one.cookie)
        begun, more = self._scope.newly_selected()
        passed_on = False
        if held := holders(begun, INHERITED_LIMIT):
            passed_on = self._adopt_known(self._listeners(), held)
        if time.monotonic() - self._ended_at_s >= ENDED_S:
            passed_on |= self._let_go_of_ended()
            passed_on |= self._left_by_elders()
            self._ended_at_s = time.monotonic()
        passed_on |= self._have_changed
        self._have_changed = False
        return Left(more, passed_on)

    def forget(self, cookie: int) -> None:
        """It is nobody's whom we look after."""
        self._steering.forget(cookie)
        self._doubtful.pop(cookie, None)

    def _let_go_of_ended(self) -> bool:
        """What was found with a process that has ended; whether others have it open, who may be ours."""
        ended = {one.cookie for one in self._steering.kept() if one.caller is None and not _lives(one.pid)}
        if not ended:
            return False
        there, waiting = self._listeners(), holders([MANAGER])
        left = {cookie for cookie in ended if cookie not in there or there[cookie].inode not in waiting}
        for cookie in left:
            self.forget(cookie)
        return not left.isdisjoint(there)

    def _left_by_elders(self) -> bool:
        """What an ancestor has let go of, and one of ours still has open, is ours; whether another of ours may be."""
        if not self._elders:
            return False
        there, ours = self._listeners(), sorted(set[int]().union(*self._elders.values()))[:OURS_MOST]
        left = {cookie: there[cookie] for cookie in self._elders.keys() & there.keys()}
        self._elders.clear()
        held = holders(ours, LOOKED_AT_MOST // len(ours))
        is_untold = self._adopt_known(left, held)
        return is_untold or any(one.inode not in held for one in left.values())

    def _note_doubt(self, one: Inbound) -> None:
        if not self._scope.is_undecided(one.pid):
            self._steering.decided(one.cookie)
            return
        self._doubtful[one.cookie] = one
        if len(self._doubtful) > DOUBTFUL_LIMIT:  # nobody tells us of those that are closed
            kept = {one.cookie for one in self._steering.kept()}
            self._doubtful = {cookie: one for cookie, one in self._doubtful.items() if cookie in kept}

    def _listeners(self) -> dict[int, OpenListener]:
        """By cookie, those that can be led."""
        return {one.cookie: one for one in netns.inside(self._network, open_listeners) if one.can_be_led}

    def _adopt_known(self, listeners: dict[int, OpenListener], held: Mapping[int, int]) -> bool:
        """As `_adopt`, but for those of which it takes too long to say whose they are. Whether there are such."""
        ours = frozenset(self._scope.selected_pids())
        elders = Elders(lambda: ours, MANAGER, LOOKED_AT_MOST)
        said = {cookie: _is_theirs(elders, one, held) for cookie, one in listeners.items()}
        known = {cookie: listeners[cookie] for cookie, is_theirs in said.items() if is_theirs is not None}
        self._adopt(known, held, {cookie for cookie in known if said[cookie]}, ours)
        return len(known) < len(listeners)

    def _adopt(
        self, listeners: dict[int, OpenListener], held: Mapping[int, int], theirs: Container[int], ours: Container[int]
    ) -> None:
        """Keep those that somebody has open: `held` are inodes, and who has them. Those that are kept stay so.

        Not `theirs`, as long as they are; nor those of who has ended since, or was judged and is not of `ours` now.
        """
        runs, adopted = RunMembers(self._scope.selection.runs), set()
        for one in listeners.values():
            pid = held.get(one.inode)
            if pid is None or runs.hold(one.cgroup):
                continue
            if pid not in ours or not _lives(pid):
                self._have_changed = True
                continue
            if one.cookie in theirs:
                self._elders.setdefault(one.cookie, set()).add(pid)
                continue
            if self._steering.keep(record := self._record(one, pid)):
                adopted.add(one.cookie)
                self._note_doubt(inbound_records.parse_inbound(record))
        for cookie in adopted - self._listeners().keys() if adopted else ():  # closed before anybody saw to that
            self.forget(cookie)

    def _record(self, one: OpenListener, pid: int) -> bytes:
        return inbound_records.listener(
            cookie=one.cookie,
            netns=self._steering.namespace,
            at_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC),
            local=one.local,
            port=one.port,
            also_v4=one.also_v4,
            pid=pid,
            uid=_uid_of(pid),
            comm=comm_of(pid),
            by_selected=not self._scope.is_undecided(pid),
        )

    def _is_selected(self, one: Inbound) -> bool:
        owner = self._scope.processes.whose(one.pid, one.uid, one.comm, one.at_ns, one.caller)
        return self._scope.selects(told(owner))


def _is_theirs(elders: Elders, one: OpenListener, held: Mapping[int, int]) -> bool | None:
    """An ancestor of who has it open has it too. None: that took too long to find out."""
    pid = held.get(one.inode)
    return pid is not None and elders.have(one.inode, pid)


def _lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _uid_of(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:  # it has just ended, and with it what it listened on
        return 0
