"""Rules that expire while a policy holds, and such as had expired before: each is put on record once."""

from __future__ import annotations

from collections.abc import Callable

from mitmsec.audit.event import FaultSeen
from mitmsec.core.contradiction import expired
from mitmsec.core.policy import Policy


class Expiries:
    """Of one session."""

    def __init__(self, record: Callable[[FaultSeen], None], session: str) -> None:
        self._record, self._session = record, session
        self._policy: Policy | None = None
        self._ends_s: list[int] = []  # when there is something to tell, the next one last

    def look(self, policy: Policy, now_s: float) -> None:
        """Tell what has expired under this policy and was not told yet."""
        if policy is not self._policy:
            ends_s = {rule.expires_s for rule in policy.rules if rule.expires_s is not None}
            self._policy, self._ends_s = policy, sorted(ends_s, reverse=True)
        while self._ends_s and self._ends_s[-1] <= now_s:
            end_s = self._ends_s.pop()
            for sentence in expired([rule for rule in policy.rules if rule.expires_s == end_s], now_s):
                self._record(FaultSeen(what="rule_expired", detail=sentence, session=self._session))
