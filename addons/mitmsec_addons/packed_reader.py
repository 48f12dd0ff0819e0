"""A single file that was compressed: gzip (RFC 1952), bzip2, xz, Zstandard, in one stream or more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mitmsec_addons.containers import Entry, Event, Mark, Unreadable
from mitmsec_addons.inflating import Damaged, Unfolding

_ENDINGS = {
    ".tgz": ".tar",
    ".tbz2": ".tar",
    ".txz": ".tar",
    ".tzst": ".tar",
    ".zst": "",
    ".svgz": ".svg",
    ".gz": "",
    ".bz2": "",
    ".xz": "",
}


class PackedReader:
    """`begin` makes what unfolds one stream; `file_name` is what the whole is called."""

    def __init__(self, begin: Callable[[], Unfolding], file_name: str) -> None:
        self._begin = begin
        self._unfolding: Unfolding | None = None
        self._name: str | None = unpacked_name(file_name)
        self._over = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """What comes of `data`."""
        if self._name is not None:
            yield Entry(self._name)
            self._name = None
        while data and not self._over:
            if self._unfolding is None:
                data = data.lstrip(b"\0")  # padding between streams
                if not data:
                    return
                self._unfolding = self._begin()
            try:
                yield from self._unfolding.feed(data)
            except Damaged as error:
                self._over = True
                yield Unreadable(str(error))
                return
            data = self._unfolding.unused
            if self._unfolding.ended:
                self._unfolding = None

    def close(self) -> Iterator[Event]:
        """A stream that has no end."""
        if self._unfolding is not None and not self._over:
            yield Unreadable("cut off")
        yield Mark.ENDED


def unpacked_name(file_name: str) -> str:
    """`a.tar` for `a.tar.gz` and `a.tgz`; `content` where there is nothing to go by."""
    for ending, instead in _ENDINGS.items():
        if file_name.lower().endswith(ending) and len(file_name) > len(ending):
            return file_name[: -len(ending)] + instead
    return "content"
