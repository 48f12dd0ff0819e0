"""What is known, and known not to be readable here."""

from __future__ import annotations

from collections.abc import Iterator

from mitmsec_addons.containers import Event, Unreadable


class UnreadReader:
    """Says `why`, once."""

    def __init__(self, why: str) -> None:
        self._why: str | None = why

    def feed(self, data: bytes) -> Iterator[Event]:
        """At once that it is not read, and then nothing."""
        if self._why is not None:
            yield Unreadable(self._why)
        self._why = None

    def close(self) -> Iterator[Event]:
        """Nothing more."""
        yield from ()
