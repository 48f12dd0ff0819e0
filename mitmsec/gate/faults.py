"""Faults on their way to the record: the first of a kind at once, its repetitions added up, so that no flood of
strangers or full tables becomes a flood of events."""

from __future__ import annotations

from collections.abc import Callable

from mitmsec.audit.event import FaultSeen
from mitmsec.core.model import OnFailure


class Faults:
    """`tick` is to be called about once a second."""

    def __init__(self, record: Callable[[FaultSeen], None], session: str) -> None:
        self._record, self._session = record, session
        self._repeated: dict[tuple[str, OnFailure | None], tuple[int, str]] = {}

    def saw(self, what: str, failed: OnFailure | None = None, detail: str = "", flow: str | None = None) -> None:
        """Report one. `what` is a short, stable word."""
        repeated = self._repeated.get((what, failed))
        if repeated is None:
            self._repeated[what, failed] = (0, "")
            self._record(FaultSeen(what=what, detail=detail, failed=failed, flow=flow, session=self._session))
        else:
            self._repeated[what, failed] = (repeated[0] + 1, detail)

    def tick(self) -> None:
        """Report what has repeated since the last tick; what has not counts as new next time."""
        repeated, self._repeated = self._repeated, {}
        for (what, failed), (count, detail) in repeated.items():
            if count:
                self._repeated[what, failed] = (0, "")
                self._record(FaultSeen(what=what, detail=detail, failed=failed, session=self._session, count=count))
