"""Events and commands are values, and the closed lists of them are complete."""

from __future__ import annotations

from typing import get_args

import pytest

from mitmsec.core.model import Endpoint, Transport
from mitmsec_redirect import divert_signals
from mitmsec_redirect.divert_signals import Flow, Terms

REMOTE = Endpoint.of("203.0.113.9", 443)
FLOW = Flow(transport=Transport.TCP, local=Endpoint.of("192.0.2.1", 40000), remote=REMOTE)


@pytest.mark.parametrize(("base", "union"), [("Event", "AnyEvent"), ("Command", "AnyCommand")])
def test_the_list_of_kinds_is_complete(base: str, union: str) -> None:
    assert set(get_args(getattr(divert_signals, union).__value__)) == set(
        getattr(divert_signals, base).__subclasses__()
    )


def test_signals_are_compared_by_content_and_cannot_be_changed() -> None:
    assert divert_signals.Tick() == divert_signals.Tick()
    with pytest.raises(AttributeError):
        divert_signals.DropSyn(number=1).number = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("terms", "covered"),
    [
        (Terms(), False),
        (Terms(flows=frozenset([FLOW])), True),
        (Terms(remotes=frozenset([REMOTE])), True),
        (Terms(remotes=frozenset([FLOW.local])), False),
        (Terms(everything=True), True),
    ],
)
def test_terms_say_which_flows_they_cover(terms: Terms, covered: bool) -> None:
    assert terms.cover(FLOW) is covered
