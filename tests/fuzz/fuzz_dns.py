"""Fuzzed: `dns.parse` and `dns_offers.limited`. The first has three outcomes, the last two of them final, and what is
read is within its bounds; the second changes no message's length or head, and none twice.
"""

from __future__ import annotations

import ipaddress

from mitmsec.core import dns
from mitmsec.core.dns import DnsMessage, Malformed, NeedMore, parse
from mitmsec.core.dns_offers import Offers, asks_for_offers, limited
from mitmsec.core.names import parse_name

NEITHER = Offers(ech=False, h3=False)
NAME_MOST_BYTES, ADDRESSES_MOST = 255, 64  # as RFC 1035 and the module's own words have it


def attempt(data: bytes) -> None:
    """Two bytes say where the data is cut, the rest is a message."""
    cut, sent = int.from_bytes(data[:2]), data[2:]
    whole, start = parse(sent), parse(sent[: cut % (len(sent) + 1)])
    if not isinstance(start, NeedMore):
        assert whole == start, "more bytes changed an answer"
    _is_limited(sent)
    match whole:
        case DnsMessage():
            _is_a_message(whole, sent)
        case NeedMore(size_bytes=size):
            assert size is None or size > len(sent)
        case Malformed(reason=reason):
            assert reason
            assert reason.isprintable()


def _is_limited(sent: bytes) -> None:
    after = limited(sent, NEITHER)
    assert (len(after), after[:2], after[4:12]) == (len(sent), sent[:2], sent[4:12])
    assert limited(after, NEITHER) == after
    assert after == sent or not asks_for_offers(sent), "a question was changed"


def _is_a_message(message: DnsMessage, sent: bytes) -> None:
    assert message.id == int.from_bytes(sent[:2])
    assert message.wire_name.endswith(b"\0")
    assert message.wire_name == message.wire_name.lower()
    assert len(message.wire_name) <= NAME_MOST_BYTES
    assert len(message.addresses) <= ADDRESSES_MOST
    assert message.is_response or not message.addresses
    assert message.name is None or parse_name(message.name) == message.name
    for one in message.addresses:
        assert str(ipaddress.ip_address(one.address)) == one.address
        assert 0 <= one.ttl_s < 1 << 31
    assert dns.parse(sent) == message
