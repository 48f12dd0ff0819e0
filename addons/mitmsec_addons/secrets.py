"""The inspector `secrets`: keys, tokens and passwords, by the rules of gitleaks (`secret_rules`).

    ghp_…                     a form that nothing else has ─────────────────────────► 0.9
    datadog_key = "…"         known by the name that it is given ───────────────────► 0.7
    password: "…"             likewise, of no service in particular ────────────────► 0.5
    entropy, allow-lists, stop words: what speaks against it leaves nothing of it

Heads are not looked at: there a program shows its own credentials to whom they are for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import resources

import msgspec

from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.model import Severity
from mitmsec_addons.go_expressions import for_re
from mitmsec_addons.secret_rules import Rule, entropy_bits, rules
from mitmsec_addons.shaped import ShapeInspection, Telling
from mitmsec_addons.sightings import Check, Shape, Shapes, Sighting, group_of
from mitmsec_addons.triggers import ByHyperscan, Engine, Trigger, compiled
from mitmsec_addons.word_index import WordIndex

BY_FORM, BY_NAME, GENERIC = 0.9, 0.7, 0.5
SHOWN, SHOWN_OF = 4, 16  # so many characters, of a secret that has so many
NAME_BYTES, LINE_BYTES = 50, 96
_NAME = re.compile(rb"[\w.-]*\Z")
GENERIC_RULE = "generic-api-key"
TRIES = 64  # of what a generic name is given: a document that gives hundreds in a row is data
LENGTH_BYTES = 4


class Secrets:
    """Looks at everything but heads. Raises ValueError for any words.

    What `prepared` gave, in some process before this one, spares this one to compile for a second.
    """

    name = "secrets"

    def __init__(
        self,
        words: tuple[str, ...] = (),
        prepared: bytes | None = None,
        *,
        compile_triggers: Callable[[Sequence[Trigger], bytes | None], Engine] = compiled,
    ) -> None:
        if words:
            raise ValueError("secrets has no words: it knows what it looks for")
        self._compile = compile_triggers
        self._shapes = None if prepared is None else self._loaded(prepared)

    def open(self, part: Part) -> ShapeInspection | None:
        if part.kind is PartKind.HEADERS:
            return None
        if self._shapes is None:
            self._shapes = self._made(known_rules(), None)
        return ShapeInspection(self._shapes, part, _TELLING)

    def _loaded(self, prepared: bytes) -> Shapes:
        length = int.from_bytes(prepared[:LENGTH_BYTES])
        encoded, dumped = prepared[LENGTH_BYTES:][:length], prepared[LENGTH_BYTES + length :]
        return self._made(msgspec.json.decode(encoded, type=tuple[Rule, ...]), dumped or None)

    def _made(self, known: tuple[Rule, ...], dumped: bytes | None) -> Shapes:
        return Shapes(_shapes(known), lambda triggers: self._compile(triggers, dumped))


def known_rules() -> tuple[Rule, ...]:
    """Those that come with us."""
    return rules(resources.files("mitmsec_addons").joinpath("rules/gitleaks.toml").read_text())


def prepared() -> bytes:
    """The rules, and what the faster engine makes of them: for `Secrets`, on a machine like this."""
    known = known_rules()
    engine = compiled([_trigger(rule) for rule in known])
    encoded = msgspec.json.encode(known)
    dumped = engine.dumped() if isinstance(engine, ByHyperscan) else b""
    return len(encoded).to_bytes(LENGTH_BYTES) + encoded + dumped


def _trigger(rule: Rule) -> Trigger:
    return Trigger(rule.expression, words=rule.words)


def _shapes(known: Sequence[Rule]) -> list[Shape]:
    """The generic rule leaves to the others what they know better."""
    others = [rule for rule in known if rule.id != GENERIC_RULE]
    by_word = WordIndex((word.encode(), shape) for rule in others for shape in [_shape(rule)] for word in rule.words)

    def is_anothers(context: bytes) -> bool:
        return any(
            any(_is_one(shape, match) for match in re.finditer(shape.found, context))
            for shape in by_word.within(context.lower())
        )

    return [_shape(rule, is_anothers if rule.id == GENERIC_RULE else None) for rule in known]


def _is_one(shape: Shape, match: re.Match[bytes]) -> bool:
    assert shape.admits is not None
    return shape.admits(match) and shape.check(match[group_of(match)], b"") > 0


def _shape(rule: Rule, is_anothers: Callable[[bytes], bool] | None = None) -> Shape:
    return Shape(
        name=rule.id,
        trigger=_trigger(rule),
        found=for_re(rule.expression).encode(),
        check=_check(rule, is_anothers),
        admits=_admits(rule),
        reach_bytes=rule.reach_bytes,
        is_whole=True,
        tries=TRIES if rule.id == GENERIC_RULE else None,
        begins=tuple(word.encode() for word in rule.begins),
    )


def _admits(rule: Rule) -> Callable[[re.Match[bytes]], bool]:
    words = tuple(word.encode() for word in rule.words)
    by_match, by_line = _any(rule, "match"), _any(rule, "line")

    def admits(match: re.Match[bytes]) -> bool:
        whole = match[0].lower()
        if not any(word in whole for word in words):
            return False
        return not by_match().search(_named(match)) and not by_line().search(_line(match))

    return admits


def _any(rule: Rule, target: str) -> Callable[[], re.Pattern[bytes]]:
    """What matches where any of the rule's allow-lists for `target` does; compiled when it is first asked for."""
    expressions = [one for allowed in rule.allowed if allowed.target == target for one in allowed.expressions]
    return cache(partial(re.compile, "|".join(f"(?:{one})" for one in expressions or [r"(?!)"]).encode()))


def _check(rule: Rule, is_anothers: Callable[[bytes], bool] | None) -> Check:
    by_secret = _any(rule, "secret")
    stop_words = WordIndex((word.encode(), True) for word in rule.stop_words)
    sure = GENERIC if rule.id == GENERIC_RULE else BY_NAME if rule.is_assigned else BY_FORM

    def check(secret: bytes, context: bytes) -> float:
        if by_secret().search(secret):  # first: most of what stands in programs is nothing but letters
            return 0.0
        if entropy_bits(secret) <= rule.min_entropy_bits and rule.min_entropy_bits > 0:
            return 0.0
        if any(stop_words.within(secret.lower())):
            return 0.0
        return 0.0 if is_anothers is not None and is_anothers(context) else sure

    return check


def _named(match: re.Match[bytes]) -> bytes:
    """It, with the beginning of the name that it is given."""
    before = _NAME.search(match.string, max(match.start() - NAME_BYTES, 0), match.start())
    return (before[0] if before is not None else b"") + match[0]


def _line(match: re.Match[bytes]) -> bytes:
    """It, as far as it is near."""
    window, begin, end = match.string, match.start() - LINE_BYTES, match.end() + LINE_BYTES
    after = window.find(b"\n", match.end(), end)
    return window[max(window.rfind(b"\n", 0, match.start()) + 1, begin, 0) : after if after >= 0 else end]


def _shown(one: Sighting) -> str:
    """So little of it that nobody can use it, and who has it knows it again."""
    characters = f"{len(one.what)} characters"
    if len(one.what) < SHOWN_OF or one.shape == "private-key":
        return characters
    return f"{one.what[:SHOWN].decode('ascii', 'replace')}… ({characters})"


_TELLING = Telling(
    detector=Secrets.name,
    severity=Severity.HIGH,
    what="secrets",
    summary=lambda one: f"secret, {one.shape}",
    evidence=_shown,
    severity_of=lambda one: Severity.HIGH if one.confidence > GENERIC else Severity.MEDIUM,
)
