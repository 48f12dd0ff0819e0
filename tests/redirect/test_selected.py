"""The map of verdicts; what the hook makes of it is seen in test_connect_hook_selection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mitmsec_redirect.selected import SelectedProcesses
from mitmsec_redirect.verdicts import Verdict

pytestmark = pytest.mark.root


@pytest.fixture
def selected() -> Iterator[SelectedProcesses]:
    made = SelectedProcesses(limit=2)
    yield made
    made.close()


def test_a_verdict_is_remembered_replaced_and_withdrawn(selected: SelectedProcesses) -> None:
    assert selected.said(7) is None
    assert selected.say(7, Verdict.SELECTED)
    assert selected.say(7, Verdict.SELECTED | Verdict.INHERITED)
    assert selected.said(7) == Verdict.SELECTED | Verdict.INHERITED
    selected.withdraw(7)
    selected.withdraw(7)
    assert selected.said(7) is None


def test_a_full_map_says_so_and_keeps_what_it_has(selected: SelectedProcesses) -> None:
    assert selected.say(1, Verdict.SELECTED)
    assert selected.say(2, Verdict.OWN_TRAFFIC)
    assert not selected.say(3, Verdict.SELECTED)
    assert selected.say(2, Verdict.UNDECIDED)
    assert selected.pids() == {1: Verdict.SELECTED, 2: Verdict.UNDECIDED}
