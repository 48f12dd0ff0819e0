"""mitmproxy's header fields, asked without converting every name for every question.

For one request and its answer its layers ask some twenty times, each time of all fields of a head. What they are told
is the same (a test compares); fields that are not mitmproxy's own are left as they are.
"""

from __future__ import annotations

from functools import lru_cache

from mitmproxy import http

NAMES_LIMIT = 256  # that are asked for: they stand in code, not in traffic


class Fields(http.Headers):
    """As its base, sooner."""

    def get_all(self, name: str | bytes) -> list[str]:
        wanted = _lower(name)
        size_bytes = len(wanted)
        return [
            value.decode("utf-8", "surrogateescape")
            for key, value in self.fields
            if len(key) == size_bytes and key.lower() == wanted
        ]

    def get[T](self, key: str | bytes, default: T | None = None) -> str | T | None:
        """All values, joined (RFC 9110 §5.3)."""
        values = self.get_all(key)
        return ", ".join(values) if values else default


def quicken(headers: http.Headers) -> None:
    """From now on `headers` answers as Fields do."""
    if type(headers) is http.Headers:
        headers.__class__ = Fields


@lru_cache(NAMES_LIMIT)
def _lower(name: str | bytes) -> bytes:
    return (name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")).lower()


def authorities(request: http.Request) -> list[bytes]:
    """Every name that `request` carries for whom it is for."""
    found = [value for name, value in request.headers.fields if name.lower() == b"host"]
    if request.data.authority:
        found.append(request.data.authority)
    return found


def asks_for_h2c(fields: tuple[tuple[bytes, bytes], ...]) -> bool:
    """An upgrade to HTTP/2 in the clear."""
    return any(name.lower() == b"upgrade" and b"h2c" in value.lower() for name, value in fields)


def without_h2c(request: http.Request) -> None:
    """An upgrade to HTTP/2 in the clear would take the rest of the connection out of sight (RFC 9113 §3.1)."""
    request.headers.pop("upgrade", None)
    request.headers.pop("http2-settings", None)
    request.headers.pop("connection", None)
