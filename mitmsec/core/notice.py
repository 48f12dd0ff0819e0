"""What a policy means for whoever uses this machine, in plain language: what is inspected, why, and what is kept.

The words of `mitmsec status --user` and of the console's public page. Nothing that a policy does is left out because it
is unpleasant to read.
"""

from __future__ import annotations

from collections.abc import Iterator

from mitmsec.core.model import Action, Direction, OnFailure, OnFinding, Value
from mitmsec.core.policy import Policy
from mitmsec.core.rules import Application, Rule

WORDS_SHOWN = 12
INSPECTORS = {
    "archives": "archives that hide what is in them",
    "documents": "the text of documents",
    "doh": "name look-ups that go past the system's",
    "file_type": "files that are not what they call themselves",
    "iban": "bank account numbers",
    "icap": "whatever your organisation's content scanner looks for",
    "keywords": "words and patterns that your organisation has chosen",
    "malware": "malware",
    "national_id": "national identity numbers",
    "payment_card": "payment card numbers",
    "protocol_anomaly": "traffic that breaks its protocol's rules",
    "secrets": "passwords, keys and access tokens",
    "yara": "patterns that your organisation has chosen",
}
_DOES = {
    Action.DECRYPT: "opened and inspected",
    Action.BYPASS: "passed on unread",
    Action.BLOCK: "blocked",
    Action.CAPTURE: "copied as they are, still encrypted",
}


class Section(Value, frozen=True):
    title: str
    lines: tuple[str, ...]


class Notice(Value, frozen=True):
    """Sections, in the order in which they are read. `policy` is the version's fingerprint, empty: there is none."""

    sections: tuple[Section, ...]
    policy: str = ""


NO_NOTICE = Notice(
    sections=(
        Section(
            title="Is anything inspected here?",
            lines=("Nothing on this machine is inspected by mitmsec: no policy has been in force.",),
        ),
    )
)


def notice(policy: Policy) -> Notice:
    """Of the policy in force."""
    sections = (
        Section(title="Which programs", lines=tuple(_programs(policy))),
        Section(title="What happens to their connections", lines=tuple(_rules(policy))),
        Section(title="What is looked for", lines=tuple(_inspection(policy))),
        Section(title="What is kept", lines=tuple(_kept(policy))),
        Section(title="If something fails", lines=(_failure(policy),)),
    )
    return Notice(sections=sections, policy=policy.fingerprint)


def _programs(policy: Policy) -> Iterator[str]:
    if policy.applications:
        yield "Connections of these programs go through mitmsec. Those of all other programs are not touched."
        for one in policy.applications:
            yield f"{one.name}: {_criteria(one)}"
    else:
        yield "Connections of programs that are started under mitmsec. Those of all other programs are not touched."


def _criteria(one: Application) -> str:
    parts = [
        ("", one.path),
        ("called ", one.process_name),
        ("run by ", one.user),
        ("the service ", one.service),
        ("signed by ", one.signer),
        ("in the container ", one.container),
        ("with the SHA-256 ", one.sha256),
        ("process ", tuple(map(str, one.pid))),
    ]
    words = [f"{before}{_listed(values)}" for before, values in parts if values]
    return "; ".join(words) + (", and programs that they start" if one.children else "")


def _rules(policy: Policy) -> Iterator[str]:
    if policy.rules:
        yield "The first of these that fits a connection decides:"
    yield from map(_rule, policy.rules)
    which = "All other connections" if policy.rules else "All of their connections"
    yield f"{which} that these programs make are {_DOES[policy.action]}."
    if policy.inbound is not Action.BYPASS:
        yield f"Connections that come in to these programs are {_DOES[policy.inbound]}."


def _rule(rule: Rule) -> str:
    conditions = [
        ("of ", rule.application),
        ("to ", rule.host),
        ("to sites in the list ", rule.category),
        ("to the network ", rule.address),
        ("port ", tuple(str(low) if low == high else f"{low}-{high}" for low, high in rule.port)),
        ("of the user ", rule.user),
        ("that speak ", tuple(one.value for one in rule.protocol)),
        ("at these times: ", rule.time),
    ]
    said = ", ".join(f"{before}{_listed(values)}" for before, values in conditions if values)
    which = "Incoming connections" if rule.direction is Direction.INBOUND else "Connections"
    some = "" if said else " that meet further technical conditions" if _has_others(rule) else ""
    until = f" until {rule.expires}" if rule.expires else ""
    why = f" Why: {rule.reason.rstrip('.')}." if rule.reason else ""
    return f"{which}{' ' * bool(said)}{said}{some} are {_DOES[rule.action]}{until}.{why}"


def _has_others(rule: Rule) -> bool:
    return bool(rule.alpn or rule.ja4 or rule.ech)


def _inspection(policy: Policy) -> Iterator[str]:
    rules = [rule for rule in policy.rules if rule.action is Action.DECRYPT]
    if not rules and Action.DECRYPT not in (policy.action, policy.inbound):
        yield "Nothing: no connection is opened."
        return
    wanted = {name for rule in rules for name in (policy.inspect if rule.inspect is None else rule.inspect)}
    if Action.DECRYPT in (policy.action, policy.inbound):
        wanted |= set(policy.inspect)
    if not wanted:
        yield "In connections that are opened, nothing in particular: addresses of requests are recorded."
        return
    yield "In connections that are opened, mitmsec looks for:"
    yield from sorted(INSPECTORS.get(name, f"what the inspector {name} looks for") for name in wanted)
    if any(rule.on_finding in (OnFinding.BLOCK, OnFinding.QUARANTINE) for rule in rules):
        yield "Where it finds some of that, it stops the transfer and says so."
    if any(rule.on_finding is OnFinding.REDACT for rule in rules):
        yield "Some of that is blackened out before it is sent."


def _kept(policy: Policy) -> Iterator[str]:
    yield (
        "Of each connection a record is kept: which program and user, to which site, when, how much, and what was"
        " decided. Of requests in opened connections their address, without the values in it."
    )
    yield "Contents, cookies and passwords are not in that record. Of what was found it has a part, made unreadable."
    if policy.recipients:
        names = _listed(tuple(one.name for one in policy.recipients))
        yield f"Content that was stopped is kept, sealed; any two of these people together can open it: {names}."
    yield "Each look that a reviewer takes at a record is recorded as well, and nobody can change the record unseen."


def _failure(policy: Policy) -> str:
    if policy.on_failure is OnFailure.OPEN:
        return "If mitmsec fails, connections pass unread."
    return "If mitmsec fails, these programs have no connection until it works again."


def _listed(values: tuple[str, ...]) -> str:
    shown = ", ".join(values[:WORDS_SHOWN])
    return f"{shown} and {len(values) - WORDS_SHOWN} more" if len(values) > WORDS_SHOWN else shown
