"""Puts a root into stores, and takes it out again: read back each time, and undone when it fails or is killed halfway.

    trust   look ─ is it there? ─► keep what lies there ─► note ─► steps ─► look: is it there? ─► note
                                                                     └─ fails ─► undo
    undo    nobody else has changed the store since ─► put back what lay there, byte for byte
            somebody has                            ─► take the root out, and nothing else
            either way: look once more; the note goes only if the root has gone

Whether somebody else has changed it is told by comparing all of it with what it was when the root was in. Of an entry
that was killed halfway nobody knows what it was then. There, what differs from before must be what the store's tool
makes, or ours, and the store must trust nobody new: otherwise an administrator's file would go with ours.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from enum import StrEnum

import msgspec

from mitmsec.core.model import Value
from mitmsec_certs.truststore import tree
from mitmsec_certs.truststore.host import Host, ToolFailed, rights_of
from mitmsec_certs.truststore.journal import Entry, Journal, Phase
from mitmsec_certs.truststore.plan import Plan, Root, Store
from mitmsec_certs.truststore.plans import plan_of

_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")


class Became(StrEnum):
    """What became of an order."""

    ADDED = "added"
    GONE = "gone"  # the store itself is no more
    IS_THERE = "is_there"  # by an entry of ours
    IS_THERE_BY_OTHERS = "is_there_by_others"  # nothing was done, and nothing will be taken away
    REMOVED = "removed"  # others have changed the store since: the root was taken out, and nothing else
    RESTORED = "restored"  # the store is what it was before, byte for byte


class Done(Value, frozen=True):
    """One order and what became of it."""

    store: Store
    root: Root
    became: Became
    others: frozenset[str] = frozenset()  # entries beside ours that have come or gone with it


class NotDone(Exception):
    """The store is as it was (`undone`), or still waits for `clean`; the text says why."""

    def __init__(self, store: Store, why: str, *, undone: bool) -> None:
        super().__init__(f"{store}: {why}")
        self.store, self.undone = store, undone


class Keeper:
    """Of all stores for one state. Call inside of `journal.held()`."""

    def __init__(self, journal: Journal, host: Host, now: Callable[[], str]) -> None:
        self._journal, self._host, self._now = journal, host, now

    def trust(self, store: Store, root: Root) -> Done:
        """Trusted when this returns, and read back. Raises NotDone."""
        for entry in self._entries_of(store, root):
            if entry.phase is Phase.TRUSTED and self.holds(store, root):
                return Done(store=store, root=root, became=Became.IS_THERE)
            self.untrust(entry)  # half done, or somebody has taken it out since
        plan = plan_of(store, root)
        try:
            entries = self._host.entries(store, plan)
            if plan.own <= entries:
                return Done(store=store, root=root, became=Became.IS_THERE_BY_OTHERS)
            entry = self._noted(store, root, plan, entries)
        except (OSError, ToolFailed) as error:
            raise NotDone(store, str(error), undone=True) from error
        return self._added(entry, plan)

    def untrust(self, entry: Entry) -> Done:
        """Not trusted any more when this returns, and read back; the entry is gone. Raises NotDone."""
        store, plan = entry.store, plan_of(entry.store, entry.root)
        try:
            if _is_gone(store):
                self._journal.remove(entry)
                return Done(store=store, root=entry.root, became=Became.GONE)
            before, entry = self._looked(store, plan), self._decided(entry, plan)
            if entry.phase is Phase.RESTORING:
                self._restore(entry, plan)
                became, after = Became.RESTORED, self._looked(store, plan)
            else:
                self._take_out(entry, plan)
                became, after = Became.REMOVED, self._host.entries(store, plan)
        except (OSError, ToolFailed) as error:
            raise NotDone(store, str(error), undone=False) from error
        if left := plan.own & (after or set()):
            raise NotDone(store, f"still there after it was removed: {', '.join(sorted(left))}", undone=False)
        self._journal.remove(entry)
        return Done(store=store, root=entry.root, became=became, others=_others(before, after, plan))

    def holds(self, store: Store, root: Root) -> bool:
        """Whether the store trusts the root now. Raises NotDone where nobody can tell."""
        plan = plan_of(store, root)
        try:
            return plan.own <= self._host.entries(store, plan)
        except (OSError, ToolFailed) as error:
            raise NotDone(store, str(error), undone=True) from error

    # -- adding --------------------------------------------------------------------------------------------------------
    def _noted(self, store: Store, root: Root, plan: Plan, entries: frozenset[str]) -> Entry:
        number = self._journal.new()
        with rights_of(store.uid):
            picture, contents = tree.look_and_read(plan.watched)
        self._journal.keep(number, contents)
        entry = Entry(
            number=number,
            store=store,
            root=root,
            phase=Phase.ADDING,
            since=self._now(),
            entries=entries,
            before=picture,
        )
        self._journal.write(entry)
        return entry

    def _added(self, entry: Entry, plan: Plan) -> Done:
        store = entry.store
        try:
            for step in plan.adding:
                self._host.perform(store, step)
            entries = self._host.entries(store, plan)
            if missing := plan.own - entries:
                raise ToolFailed(f"not there after it was added: {', '.join(sorted(missing))}")
            after = self._picture(store, plan)
            self._journal.write(msgspec.structs.replace(entry, phase=Phase.TRUSTED, after=after))
        except BaseException as error:
            self.untrust(entry)
            if isinstance(error, OSError | ToolFailed):
                raise NotDone(store, str(error), undone=True) from error
            raise
        others = _others(entry.entries, entries, plan)
        return Done(store=store, root=entry.root, became=Became.ADDED, others=others)

    # -- undoing -------------------------------------------------------------------------------------------------------
    def _decided(self, entry: Entry, plan: Plan) -> Entry:
        """Which way it is undone, noted before it is begun, so that it is the same after a kill."""
        phase = entry.phase
        match phase:
            case Phase.REMOVING:
                return entry
            case Phase.TRUSTED:
                is_ours = self._picture(entry.store, plan) == entry.after
            case Phase.ADDING | Phase.RESTORING:
                is_ours = self._is_all_ours(entry, plan)
        phase = Phase.RESTORING if is_ours and not self._host.is_open(plan.live) else Phase.REMOVING
        entry = msgspec.structs.replace(entry, phase=phase)
        self._journal.write(entry)
        return entry

    def _is_all_ours(self, entry: Entry, plan: Plan) -> bool:
        """Nobody else has changed what was left halfway, as far as can be told."""
        news = plan.others(self._looked(entry.store, plan) or frozenset()) - entry.entries
        changes = tree.changes(entry.before, self._picture(entry.store, plan))
        return not news and all(_is_ours(change, entry.root, plan) for change in changes)

    def _picture(self, store: Store, plan: Plan) -> dict[str, tree.Node]:
        with rights_of(store.uid):
            return tree.look(plan.watched)

    def _looked(self, store: Store, plan: Plan) -> frozenset[str] | None:
        """What the store trusts; None where nobody can read it: somebody was killed while writing it, say."""
        with contextlib.suppress(OSError, ToolFailed):
            return self._host.entries(store, plan)
        return None

    def _restore(self, entry: Entry, plan: Plan) -> None:
        contents = self._journal.contents(entry.number)
        with rights_of(entry.store.uid):
            tree.restore(plan.watched, entry.before, contents)
            if tree.look(plan.watched) != entry.before:
                raise ToolFailed("what lay there before could not be put back")

    def _take_out(self, entry: Entry, plan: Plan) -> None:
        for step in plan.removing:
            self._host.perform(entry.store, step)

    def _entries_of(self, store: Store, root: Root) -> Iterable[Entry]:
        return [entry for entry in self._journal.entries() if (entry.store, entry.root) == (store, root)]


def _is_gone(store: Store) -> bool:
    """As its owner sees it: root may not look into every home (NFS, FUSE). Raises OSError where nobody can tell."""
    with rights_of(store.uid):
        try:
            os.lstat(store.place)
        except (FileNotFoundError, NotADirectoryError):
            return True
    return False


def _is_ours(change: tree.Change, root: Root, plan: Plan) -> bool:
    """What the tool makes, what is named after the root, and links by hash."""
    path, was, now = change
    if root.label in path or path in plan.made or path.startswith(tuple(f"{made}/" for made in plan.made)):
        return True
    if path in plan.watched:
        return all(node is None or node.kind is tree.Kind.FOLDER for node in (was, now))
    is_link = all(node is None or node.kind is tree.Kind.LINK for node in (was, now))
    return is_link and _HASHED.fullmatch(os.path.basename(path)) is not None


def _others(before: frozenset[str] | None, after: frozenset[str] | None, plan: Plan) -> frozenset[str]:
    """What has come or gone beside our own, as far as it is known."""
    return frozenset() if before is None or after is None else plan.others(before ^ after)
