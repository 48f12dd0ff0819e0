"""How a program leaves that has seen our certificate: what of it may mean that it does not accept it.

    in its handshake          an alert about certificates · the end of its side · a reset
    after it, at once         the same, before either side has said anything: some look only when TLS is done,
                              and of TLS 1.3 an alert always comes then

Later than PROMPT_S a silent end means nothing: browsers open connections ahead of need, and drop what they did not use.
"""

from __future__ import annotations

from mitmsec.audit.event import Outcome
from mitmsec.core.model import Refusal
from mitmsec.engine import alerts
from mitmsec.engine.side import Ended

PROMPT_S = 3.0


def by_alert(alert: int | None) -> Refusal | None:
    """What an alert says; None: nothing about our certificate."""
    return Refusal.ALERT if alerts.is_distrust(alert) else None


def after_handshake(ended: Ended, *, was_anything_said: bool, waited_s: float) -> Refusal | None:
    """What it means that a client has `ended` like this, so long after its handshake."""
    if ended.outcome is Outcome.CLIENT_REJECTED:
        return Refusal.ALERT
    if was_anything_said or waited_s > PROMPT_S or ended.outcome is not Outcome.COMPLETED:
        return None
    if ended.reset:
        return Refusal.RESET
    return None if ended.error else Refusal.CLOSED  # an alert that is about something else
