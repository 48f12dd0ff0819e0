"""Rules for secrets: gitleaks' own (`rules/gitleaks.toml`, MIT), as they can be used on a stream that has no files.

    rules/gitleaks.toml ── ported (go_expressions) ── ADJUSTED ──► Rule: what fires, what proves, what speaks against it

Of a rule, its allow-lists by path are left out; so are the one rule that knows nothing but paths, and LEFT_OUT.
ADJUSTED says what else is different here, and why; an adjustment whose text is not in the rule any more is an error.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from mitmsec.core.model import Value
from mitmsec_addons.go_expressions import for_re, ported

NAME_BEGINS = r"[\w.-]{0,50}?"
END = r"""(?:[\x60'"\s;]|\\[nr]|$)"""
END_HERE = r"""(?:[\x60'"\s;&<]|\\[nrt\x60'"]|$)"""  # in forms, in XML, and in texts within JSON
REACH_LIMIT_BYTES, REACH_USUAL_BYTES = 4096, 384
_ASSIGNED = r"(?:[ \t\w.-]{0,20})[\s'\"]{0,3}(?:=|>|:{1,3}=|\|\||:|=>|\?=|,)"


class Adjustment(Value, frozen=True):
    """`was` in an expression becomes `becomes`; or its reach, or the words that it needs, are others.

    `begins`: with one of these words, in any case, whatever it matches begins.
    """

    why: str
    was: str = ""
    becomes: str = ""
    reach_bytes: int | None = None
    words: tuple[str, ...] = ()
    begins: tuple[str, ...] = ()


ADJUSTED: Mapping[str, Adjustment] = {
    "private-key": Adjustment(
        "the head and some of the key prove it: whoever keeps back its end has sent it all the same",
        was=r"[\s\S-]{64,}?KEY(?: BLOCK)?-----",
        becomes=r"(?:\s|\\[nr]|[A-Za-z-]{1,20}: [^\r\n]{0,80})*[A-Za-z0-9+/=\r\n\\]{64}",
        reach_bytes=512,
    ),
    "sourcegraph-access-token": Adjustment(
        "forty hexadecimal digits are any commit: only where the name stands before them",
        was=r"(?i)\b(\b(sgp_(?:[a-fA-F0-9]{16}|local)_[a-fA-F0-9]{40}|sgp_[a-fA-F0-9]{40}|[a-fA-F0-9]{40})\b)",
        becomes=r"(?i)(?:\b(sgp_(?:[a-f0-9]{16}|local)_[a-f0-9]{40}|sgp_[a-f0-9]{40})|sourcegraph" + _ASSIGNED
        + r"[\x60'\"\s=]{0,5}([a-f0-9]{40}))",
    ),
    "sonar-api-token": Adjustment("its second group is the secret", was="(login|token)", becomes="(?:login|token)"),
    "curl-auth-header": Adjustment(
        "lines within lines take for ever where nothing matches",
        was=r"(?:.*?|.*?(?:[\r\n]{1,2}.*?){1,5})", becomes=r"[^|;&]{0,300}?", reach_bytes=512,
    ),
    "curl-auth-user": Adjustment(
        "likewise", was=r"(?:.*|.*(?:[\r\n]{1,2}.*){1,5})", becomes=r"[^|;&]{0,300}", reach_bytes=512
    ),
    "generic-api-key": Adjustment(
        "a name, what stands between, and 150 characters", reach_bytes=256,
        begins=("access", "auth", "api", "credential", "creds", "key", "passw", "secret", "token"),
    ),
    "airtable-personnal-access-token": Adjustment("in a file its name may stand anywhere", words=("pat",)),
    "facebook-access-token": Adjustment("likewise", words=("|", "%")),
    "codecov-access-token": Adjustment("they are UUIDs as well", was="([a-z0-9]{32})", becomes="([a-z0-9-]{32,36})"),
    "jwt": Adjustment("claims are long", reach_bytes=REACH_LIMIT_BYTES),
    "jwt-base64": Adjustment("claims are long", reach_bytes=REACH_LIMIT_BYTES),
    "kubernetes-secret-yaml": Adjustment("two parts of a document", reach_bytes=1024),
    "1password-service-account-token": Adjustment("a JSON document", reach_bytes=2048),
    "facebook-page-access-token": Adjustment("it has no end", reach_bytes=1024),
    "flyio-access-token": Adjustment("it has no end", reach_bytes=2048),
}  # fmt: skip


LEFT_OUT = frozenset({"hashicorp-tf-password"})  # outside of .tf files it is any short word in quotes


class AllowList(Value, frozen=True):
    """What matches one of these is none. `target`: `secret`, `match` or `line`."""

    target: str
    expressions: tuple[str, ...]


class Rule(Value, frozen=True):
    """One kind of secret. `expression` is for Hyperscan, and through `for_re` for `re`; a group in it is the secret."""

    id: str
    expression: str
    words: tuple[str, ...]
    min_entropy_bits: float
    reach_bytes: int
    is_assigned: bool
    """It is known by the name that it is given, not by its own form."""
    allowed: tuple[AllowList, ...] = ()
    stop_words: tuple[str, ...] = ()
    begins: tuple[str, ...] = ()
    """What it matches begins with one of these, in any case; or it is not known with what."""


def rules(text: str) -> tuple[Rule, ...]:
    """What a gitleaks configuration asks to be looked for. Raises ValueError for what is none that can be used."""
    config = tomllib.loads(text)
    everywhere = config.get("allowlist", {})
    known = [one for one in config["rules"] if "regex" in one and one["id"] not in LEFT_OUT]
    if unknown := set(ADJUSTED) - {one["id"] for one in known}:
        raise ValueError(f"there is no rule {min(unknown)} to adjust")
    return tuple(_rule(one, everywhere) for one in known)


_TERMS = (0.0, *(count * math.log2(count) for count in range(1, 257)))


def entropy_bits(secret: bytes) -> float:
    """Shannon's, of a byte."""
    if not secret:
        return 0.0
    counts = [count for one in set(secret) if (count := secret.count(one)) > 1]
    terms = [_TERMS[count] if count < len(_TERMS) else count * math.log2(count) for count in counts]
    return math.log2(len(secret)) - math.fsum(terms) / len(secret)


def _rule(given: Mapping[str, Any], everywhere: Mapping[str, Any]) -> Rule:
    adjusted = ADJUSTED.get(given["id"], Adjustment(""))
    if adjusted.was not in given["regex"]:
        raise ValueError(f"the rule {given['id']} does not say {adjusted.was} any more")
    said = given["regex"].replace(NAME_BEGINS, "")  # any name may have any beginning: it only makes searching slow
    said = said.replace(END, END_HERE)
    expression = ported(said.replace(adjusted.was, adjusted.becomes) if adjusted.was else said)
    lists = [everywhere, *given.get("allowlists", [])]
    return Rule(
        id=given["id"],
        expression=expression,
        words=adjusted.words or tuple(word.lower() for word in given["keywords"]),
        min_entropy_bits=given.get("entropy", 0.0),
        reach_bytes=adjusted.reach_bytes or _reach_bytes(expression),
        is_assigned=NAME_BEGINS in given["regex"],
        allowed=tuple(_allowed(lists)),
        stop_words=tuple(word.lower() for one in lists for word in one.get("stopwords", ())),
        begins=adjusted.begins,
    )


def _allowed(lists: list[Mapping[str, Any]]) -> Iterator[AllowList]:
    for one in lists:
        needs_path = one.get("condition") == "AND" and "paths" in one
        if one.get("regexes") and not needs_path:
            expressions = tuple(for_re(ported(expression)) for expression in one["regexes"])
            yield AllowList(target=one.get("regexTarget", "secret"), expressions=expressions)


def _reach_bytes(expression: str) -> int:
    """How long a match can be; of one that has no longest, the usual."""
    from re import _parser  # type: ignore[attr-defined]  # nothing else tells it

    longest = int(_parser.parse(for_re(expression).encode()).getwidth()[1])
    return longest if longest <= REACH_LIMIT_BYTES else REACH_USUAL_BYTES
