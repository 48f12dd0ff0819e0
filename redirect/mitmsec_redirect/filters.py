"""The filter strings of the backend's four handles. Signatures; see docs/redirect.md."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from mitmsec.core.model import Value

TESTS_MOST = 255  # WinDivert's compiler takes 256 tests in one filter


class Ports(Value, frozen=True, order=True):
    """A range of ports, both ends included. Raises ValueError unless 0 <= first <= last <= 65535."""

    first: int
    last: int


class Own(Value, frozen=True):
    """Traffic that is never diverted: the gate's listening port, and the local ports of its connections to origins."""

    gate_port: int
    upstream: Ports


class Term(Value, frozen=True):
    """What a filter says of one flow: the program's port, and the far address (4 or 16 bytes)."""

    local_port: int
    remote: bytes


class Width(IntEnum):
    """How much more than the flows a filter matches."""

    FLOWS = 0  # nothing but other flows between the same port and address
    PORTS = 1  # whatever goes out from these ports
    RANGES = 2  # and from ports between them
    EVERYTHING = 3  # all TCP but own traffic


class FlowFilter(Value, frozen=True):
    """A filter that matches every flow it was made for, and what else it matches (left untouched by `nat.rewrite`)."""

    text: str
    width: Width

    def covers(self, term: Term) -> bool:
        """Whether packets of this flow are matched already, so that no new filter is needed."""


def socket_filter(ports: Iterable[Ports] = ()) -> str:
    """SOCKET layer, sniffed: who connects; only to these remote ports, if any are named."""


def syn_filter(own: Own, ports: Iterable[Ports] = ()) -> str:
    """NETWORK layer, diverted: the first SYN of each outgoing connection but our own (to these remote ports)."""


def data_filter(terms: Iterable[Term], own: Own, *, tests: int = TESTS_MOST) -> FlowFilter:
    """NETWORK layer, diverted: packets of these flows and of the gate's answers."""


def everything_filter(own: Own) -> FlowFilter:
    """As `data_filter`, for any set of flows."""


def capture_filter(terms: Iterable[Term], own: Own, *, tests: int = TESTS_MOST) -> FlowFilter:
    """NETWORK layer, sniffed: TCP and UDP packets of these flows, both ways, never the gate's own."""
