"""A recorded decision, made once more: by the policy that was in force then, of the facts on record.

The rules decide as they did, or something is to be said about it: what else had a word then (the kill switch, what was
learned, a failure), what is not on record, or that nothing on record explains it.
"""

from __future__ import annotations

from collections.abc import Iterator

from mitmsec.audit.past_flows import PastConnection
from mitmsec.core.explain import Explanation
from mitmsec.core.model import Action, Value
from mitmsec.core.past_flow import CANNOT_DECIDE, Verdict, story, unsettled, verdict
from mitmsec.core.policy import Policy
from mitmsec.core.sniff import Protocol

UNEXPLAINED = (
    "nothing on record explains the difference: the event is not what was recorded, or the version of mitmsec that "
    "decided then decided otherwise than this one"
)


class Again(Value, frozen=True):
    """`verdict` is what becomes of the flow under that policy; `notes` say what is to be known beside it."""

    story: Explanation
    verdict: Verdict
    recorded: Verdict
    same: bool
    """The same is done, by the same rule."""
    explained: bool
    """It is the same, or what is on record says why it is not."""
    notes: tuple[str, ...]


def again(policy: Policy, past: PastConnection) -> Again:
    """What `policy` says of the flow, held against what was recorded."""
    told, found, recorded = story(policy, past.flow), verdict(policy, past.flow), past.recorded
    open_rules = dict(unsettled(told, past.flow))
    same = (found.action, found.rule) == (recorded.action, recorded.rule)
    reasons = [] if same else list(_reasons(found, past, open_rules))
    notes = [f'rule "{rule}" asks for {key}, which is not on record' for rule, key in open_rules.items()]
    if past.flow.proven is None and past.flow.name is not None:
        notes.append("whether a DNS answer gave the name this address is not on record; it is taken for proven")
    return Again(
        story=told,
        verdict=found,
        recorded=recorded,
        same=same,
        explained=same or bool(reasons),
        notes=(*reasons, *([] if same or reasons else [UNEXPLAINED]), *notes),
    )


def _reasons(found: Verdict, past: PastConnection, open_rules: dict[str, str]) -> Iterator[str]:
    recorded = past.recorded
    if recorded.rule == CANNOT_DECIDE:
        yield f"mitmsec could not decide or act then, and on_failure did: {recorded.reason}"
    elif past.outcome == "fault" and recorded.rule == found.rule:
        yield f"mitmsec could not do what was decided, and on_failure chose {recorded.action}"
    elif recorded.rule == found.rule and recorded.reason != found.reason:
        yield f"the same rule decided, and something else had the last word: {recorded.reason}"
    elif past.flow.protocol is Protocol.HTTP_PROXY and recorded.action is Action.CAPTURE:
        yield "it was to be a tunnel through a proxy, and nothing was said in there"
    elif recorded.rule in open_rules:
        yield f'rule "{recorded.rule}" decided by {open_rules[recorded.rule]}, which is not on record'
