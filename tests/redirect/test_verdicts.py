"""What becomes of a verdict; the programs in the kernel are held to the same in test_process_programs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mitmsec_redirect.verdicts import VERDICT_MASK, Verdict, at_exec, at_fork, entry, verdict_of

times = st.integers(0, 2**63 - 1)
verdicts = st.integers(0, 31).map(Verdict)


@given(times, verdicts)
def test_an_entry_holds_its_verdict_and_when_the_program_began(stamp_ns: int, verdict: Verdict) -> None:
    number = entry(stamp_ns, verdict)
    assert verdict_of(number) == verdict
    assert 0 <= stamp_ns - (number & ~VERDICT_MASK) < 4096
    assert entry(number, Verdict(0)) == number & ~VERDICT_MASK


@given(times, verdicts)
def test_a_fork_is_the_same_program(stamp_ns: int, verdict: Verdict) -> None:
    number = entry(stamp_ns, verdict)
    assert at_fork(number) == (number if verdict else 0)


@given(times, verdicts, times)
def test_a_program_that_nobody_knows_is_undecided_unless_it_inherits(stamp: int, before: Verdict, now: int) -> None:
    new = verdict_of(at_exec(entry(stamp, before), None, now))
    assert bool(new & Verdict.UNDECIDED) != bool(before & Verdict.INHERITS)
    assert bool(new & Verdict.INHERITED) == bool(before & Verdict.INHERITS)


def test_a_known_program_is_what_is_known() -> None:
    assert at_exec(0, Verdict(0), 5000) == 0
    assert at_exec(entry(1, Verdict.SELECTED), Verdict(0), 5000) == 0
    assert at_exec(0, Verdict.SELECTED | Verdict.INHERITS, 5000) == 4096 | 1 | 4


def test_children_of_an_application_with_children_stay_selected_down_the_tree() -> None:
    parent = entry(0, Verdict.SELECTED | Verdict.INHERITS)
    child = at_exec(at_fork(parent), Verdict(0), 4096)
    grandchild = at_exec(at_fork(child), None, 8192)
    assert verdict_of(grandchild) == Verdict.SELECTED | Verdict.INHERITS | Verdict.INHERITED


def test_own_traffic_is_never_diverted_whatever_it_starts() -> None:
    own = entry(0, Verdict.OWN_TRAFFIC | Verdict.INHERITS)
    assert verdict_of(at_exec(at_fork(own), Verdict.SELECTED, 0)) & Verdict.OWN_TRAFFIC


def test_what_an_undecided_parent_starts_waits_for_it() -> None:
    """The parent may turn out to be an application with children."""
    undecided = entry(0, Verdict.UNDECIDED)
    assert verdict_of(at_exec(at_fork(undecided), Verdict(0), 0)) == Verdict.UNDECIDED
    assert verdict_of(at_exec(undecided, Verdict.SELECTED, 0)) == Verdict.SELECTED | Verdict.UNDECIDED
