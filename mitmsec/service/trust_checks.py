"""What `doctor` says of trust stores: those that were given a root of ours, each as it is now."""

from __future__ import annotations

import msgspec

from mitmsec.service import trust_work
from mitmsec.service.called import program, with_state
from mitmsec.service.state import State
from mitmsec.service.trust_work import Standing
from mitmsec_redirect.probe import Check

NAME = "trust"


def trust_checks(state: State) -> list[Check]:
    """One for each root in each store that is recorded as ours; none where there is no such."""
    try:
        return [_check(row, state) for row in trust_work.listed(state, (), ())]
    except (OSError, msgspec.MsgspecError) as error:
        return [Check(name=NAME, ok=False, detail=f"{state.trust}: {error}", optional=True)]


def _check(row: trust_work.Row, state: State) -> Check:
    where = f"{row.store} ({row.place})"
    untrust, clean = (f"{program()} {words}{with_state(state)}" for words in (f"ca untrust {row.store}", "clean"))
    since = f"since {row.since[:10]}, until {row.not_after[:10]}"
    has_ended = row.not_after < trust_work.now()
    details = {
        Standing.TRUSTED: (f"{where} trusts our root {row.sha256[:16]} {since}", f"take it out: {untrust}"),
        Standing.LOST: (f"somebody has taken our root out of {where}", f"forget it: {untrust}"),
        Standing.HALF_DONE: (f"{where} was left half done", f"put it right: {clean}"),
        Standing.UNKNOWN: (f"{where} cannot be read: {row.problem}", ""),
    }
    detail, remedy = details[row.state]
    if has_ended:
        detail = f"{detail}; it has ended"
    return Check(
        name=NAME, ok=row.state is Standing.TRUSTED and not has_ended, detail=detail, remedy=remedy, optional=True
    )
