"""Fuzzed: `sniff.first_bytes` and `server_bytes`. Three outcomes, two of them final, however the bytes arrive."""

from __future__ import annotations

from mitmsec.core.names import parse_name
from mitmsec.core.sniff import WITH_NAME, Malformed, NeedMore, Protocol, Sniffed, first_bytes, server_bytes


def attempt(data: bytes) -> None:
    """Two bytes say where the data is cut, the rest is what a peer says first."""
    cut, said = int.from_bytes(data[:2]), data[2:]
    start_of = said[: cut % (len(said) + 1)]
    whole, start = first_bytes(said), first_bytes(start_of)
    if not isinstance(start, NeedMore):
        assert whole == start, "more bytes changed an answer"
    match whole:
        case Sniffed(protocol=protocol, name=name, hello=hello):
            assert (hello is not None) == (protocol is Protocol.TLS)
            assert name is None or (parse_name(name) == name and protocol in WITH_NAME)
        case NeedMore(size_bytes=size):
            assert size is None or size > len(said)
        case Malformed(reason=reason):
            assert reason.isprintable()
    _greets(start_of, said)


def _greets(start_of: bytes, said: bytes) -> None:
    start, whole = server_bytes(start_of), server_bytes(said)
    if start_of and isinstance(start, Protocol):
        assert whole is start, "more of a greeting changed an answer"
