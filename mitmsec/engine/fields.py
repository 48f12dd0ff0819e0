"""mitmproxy's header fields, asked without converting every name for every question.

For one request and its answer its layers ask some twenty times, each time of all fields of a head. What they are told
is the same (a test compares); fields that are not mitmproxy's own are left as they are.
"""

from __future__ import annotations

from functools import lru_cache

from mitmproxy import http

_NONE: list[bytes] = []
NAMES_LIMIT = 256  # that are asked for: they stand in code, not in traffic


class Fields(http.Headers):
    """As its base, sooner: who changes fields sets others, so those that were looked through stay what they were."""

    _known: tuple[object, dict[bytes, list[bytes]]] = ((), {})

    def _values(self, name: str | bytes) -> list[bytes]:
        fields, by_name = self._known
        if fields is not self.fields or type(fields) is not tuple:
            by_name = {}
            for key, value in self.fields:
                by_name.setdefault(key.lower(), []).append(value)
            self._known = self.fields, by_name
        return by_name.get(_lower(name), _NONE)

    def get_all(self, name: str | bytes) -> list[str]:
        return [value.decode("utf-8", "surrogateescape") for value in self._values(name)]

    def get[T](self, key: str | bytes, default: T | None = None) -> str | T | None:
        """All values, joined (RFC 9110 §5.3)."""
        return ", ".join(values) if (values := self.get_all(key)) else default

    def __getitem__(self, key: str | bytes) -> str:
        if not (values := self.get_all(key)):
            raise KeyError(key)
        return ", ".join(values)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str | bytes) and bool(self._values(key))


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
