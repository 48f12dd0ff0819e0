"""Fuzzed: the recognisers of upgrades and tunnels. A dialogue goes on, is over, or is malformed; nothing is hidden."""

from __future__ import annotations

from fuzz_choices import Choices

from mitmsec.core.sniff import TUNNELS, UPGRADABLE, Protocol
from mitmsec.core.upgrade import Malformed, Step, recogniser

PROTOCOLS = sorted(UPGRADABLE | TUNNELS)
SERVER_HELLO = b"\x16\x03\x03\0\x7a\x02\0\0\x76\x03\x03"
PIECE_MOST = 48


def attempt(data: bytes) -> None:
    """A byte chooses the protocol; then pieces: whose, how long, and what is in them."""
    choices = Choices(data)
    protocol = choices.one_of(PROTOCOLS)
    reader, said = recogniser(protocol), Step.ON
    while choices:
        is_sent, size = choices.flag(), 1 + choices.below(PIECE_MOST)
        piece = bytes(choices.below(256) for _ in range(size))
        was_asked = reader.is_asked
        step = reader.sent(piece) if is_sent else reader.received(piece)
        if isinstance(step, Malformed):
            assert step.reason.isprintable()
            return
        assert not (is_sent and was_asked), "a client went on before it had an answer"
        _is_lawful(protocol, step, is_sent=is_sent, was_asked=was_asked)
        if step is Step.UPGRADE:
            return
        said = step
    assert said is Step.ON
    _hides_nothing(protocol, reader)


def _is_lawful(protocol: Protocol, step: Step, *, is_sent: bool, was_asked: bool) -> None:
    if step is not Step.UPGRADE:
        return
    assert is_sent == (protocol is Protocol.MYSQL), "only MySQL's clients begin without an answer"
    assert is_sent or was_asked or protocol is Protocol.SOCKS, "nobody asked"  # who may have asked before the method


def _hides_nothing(protocol: Protocol, reader: object) -> None:
    """Whatever was said: a server that begins TLS now is seen, unless the dialogue is over for good."""
    over = getattr(reader, "_is_over", False)
    step = reader.received(SERVER_HELLO)  # type: ignore[attr-defined]
    assert over or isinstance(step, Malformed), f"{protocol} went on unseen"
