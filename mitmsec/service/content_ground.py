"""What the recorder's desk for content stands on: the vault, its key, and a thread for the disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Set
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from mitmsec.audit.envelope import Fields
from mitmsec.audit.event import Kind
from mitmsec.audit.vault import FILE_NAME, Vault, VaultUnwritable
from mitmsec.core.content_orders import ContentAnswer
from mitmsec.seal import CONTENT_FILE_NAME, ContentSealer, LogKeyRefused, open_content_sealer
from mitmsec.service.content_desk import ContentDesk, Fault
from mitmsec.service.disk_thread import DiskThread

if TYPE_CHECKING:
    from mitmsec.audit.review import Review

CLOCK_SLACK = timedelta(hours=1)


class Ground:
    """Of the log in `folder`. Made when something is first kept; what is there already is put right by `begin`.

    Methods wait for the disk, and raise VaultUnwritable.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._vault: Vault | None = None
        self._sealer: ContentSealer | None = None

    @property
    def is_there(self) -> bool:
        """Something was kept once."""
        return self._vault is not None or (self._folder / FILE_NAME).exists()

    def vault(self) -> Vault:
        """Made where there is none."""
        if self._vault is None:
            self._vault = Vault(self._folder)
        return self._vault

    def sealer(self) -> ContentSealer:
        """With the key that is there, or a new one."""
        if self._sealer is None:
            try:
                self._sealer = open_content_sealer(self._folder)
            except LogKeyRefused as error:
                raise VaultUnwritable(str(error)) from None
            except OSError as error:
                raise VaultUnwritable(f"{self._folder / CONTENT_FILE_NAME}: {error.strerror}") from None
        return self._sealer

    def begin(self, *, is_new: bool) -> Iterator[tuple[str, str, int]]:
        """What is to be on record: faults, with details and counts.

        A log that begins anew knows none of the events that content is of, which is no reason to lose that.
        """
        if not self.is_there:
            return
        try:
            if not is_new and (removed := _without_orphans(self.vault(), self._folder)):
                yield "evidence_without_event", "a recorder ended before the event was on record", removed
            if lost := self.vault().under_other_keys(self.sealer().key_ids):
                yield (
                    "evidence_unreadable",
                    "it was encrypted under another key than content.key; nobody can see it",
                    lost,
                )
        except OSError as error:
            yield "evidence_unusable", str(error), 1

    def close(self) -> None:
        """Idempotent."""
        if self._vault is not None:
            self._vault.close()


def _without_orphans(vault: Vault, folder: Path) -> int:
    """How many there were. Raises VaultUnwritable."""

    def lost(events: Set[str], since_s: int) -> Set[str]:
        from mitmsec.audit.reading import NoLog, Unreadable
        from mitmsec.audit.review import opened  # mostly there is nothing to ask about, and to import it takes long

        try:
            with opened(folder) as log:
                return _lost(log, events, since_s)
        except (NoLog, Unreadable) as error:
            raise VaultUnwritable(f"the log cannot be asked what is kept for it: {error}") from None

    return vault.remove_orphans(lost)


def _lost(log: Review, events: Set[str], since_s: int) -> Set[str]:
    """Those that are not in the log: it is read once, and asked about each that was not met, lest a clock was wrong."""
    from mitmsec.audit.criteria import Filter

    left = set(events)
    for event in log.events(Filter(kind=Kind.FINDING, since=datetime.fromtimestamp(since_s, UTC) - CLOCK_SLACK)):
        left.discard(str(event.get("id")))
        if not left:
            break
    return {event for event in left if log.event(event) is None}


def opened_desk(
    folder: Path,
    origin: str,
    record: Callable[[Kind, Fields], Awaitable[None]],
    fault: Fault,
    answer: Callable[[ContentAnswer], None],
    *,
    is_new: bool,
) -> ContentDesk:
    """The desk of the log in `folder`, called `origin`; what is wrong with its ground is on record."""
    ground = Ground(folder)
    for what, detail, count in ground.begin(is_new=is_new):
        fault(what, detail, "", count)
    return ContentDesk(ground, origin, DiskThread("content"), record, fault, answer)
