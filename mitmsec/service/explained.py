"""How an explanation of a decision looks to people."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mitmsec.core.explain import Explanation, Tried
from mitmsec.core.model import Decision, Delivery, OnFinding
from mitmsec.service.terminal import shown


def explained(story: Explanation, when: str = "") -> list[RenderableType]:
    """For people: the decision, `when` it is made, and every rule with its conditions."""
    decision = story.decision
    by = f'rule "{shown(decision.rule)}"' if any(tried.decided for tried in story.tried) else "[defaults]"
    parts: list[RenderableType] = [
        Text.assemble((decision.action.value, "bold"), f" by {by}: {shown(decision.reason)}")
    ]
    parts += [Text(line) for line in _details(decision)]
    parts += [Text(f"decided {when}", style="dim")] if when else []
    if story.tried:
        parts += ["", _table(story.tried)]
    return parts


def _details(decision: Decision) -> list[str]:
    details = [f'with the key of [[inbound]] "{shown(decision.service)}"'] if decision.service else []
    details += ["with a page; inside TLS that is a decryption"] if decision.page else []
    details += [f"owner: {shown(decision.owner)}"] if decision.owner else []
    if not decision.inspect:
        return details
    means = f"a finding means {decision.on_finding.value}"
    if decision.on_finding is not OnFinding.ALERT:
        means += f"; {_DELIVERY[decision.delivery]}"
    return [*details, f"inspected by {', '.join(decision.inspect)}; {means}"]


_DELIVERY = {
    Delivery.HOLD: "small requests are held for it",
    Delivery.TAIL: "a body's end is held for it",
    Delivery.WINDOW: "a body's last bytes are held for it",
}


def _table(tried: tuple[Tried, ...]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", "rule", "why"):
        table.add_column(column)
    for rule in tried:
        verdict = "decides" if rule.decided else "too late" if rule.accepts else "no"
        style = "bold green" if rule.decided else "" if rule.accepts else "dim"
        why = Text("\n").join(
            Text(f"{'+' if condition.holds else '-'} {condition.key}: {shown(condition.why)}")
            for condition in rule.conditions
        )
        table.add_row(
            Text(verdict, style), Text(shown(rule.rule), style), why if rule.conditions else Text("no conditions")
        )
    return table
