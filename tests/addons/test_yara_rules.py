"""Rules of YARA by yara-x itself: compiled, refused with file and line, and stopped in time."""

from __future__ import annotations

import sys

import pytest
from yara_stage import ENDLESS, EVIL

from mitmsec.core.model import Severity
from mitmsec.core.rule_hits import Hit
from mitmsec_addons.yara_rules import HITS_LIMIT, NoYara, RuleFile, RuleSet, RulesRefused, compiled


def rule_set(*texts: str, limit_s: int = 10) -> RuleSet:
    return RuleSet(
        compiled([RuleFile(name=f"{number}.yar", text=text) for number, text in enumerate(texts)]), limit_s=limit_s
    )


def test_a_rule_that_matches_is_told_with_what_it_says_of_itself_and_the_first_place() -> None:
    rules = rule_set(EVIL)
    (hit,) = rules.scan(b"some evil-bytes, evil-bytes").hits
    assert hit == Hit(
        rule="Evil",
        severity=Severity.HIGH,
        confidence=0.8,
        description="bytes that are evil",
        offset=5,
        pattern="$evil",
        size_bytes=10,
    )
    assert rules.scan(b"nothing").hits == ()


def test_a_rule_may_ask_about_any_byte_of_a_content() -> None:
    rules = rule_set('rule Ends { condition: filesize > 3 and uint8(filesize - 1) == 0x21 }\nimport "pe"')
    (hit,) = rules.scan(b"abc!").hits
    assert (hit.rule, hit.offset, hit.pattern) == ("Ends", None, "")


def test_two_files_may_have_a_rule_of_one_name() -> None:
    assert [hit.rule for hit in rule_set(EVIL, EVIL).scan(b"evil-bytes").hits] == ["Evil", "Evil"]


def test_private_rules_are_not_told_and_many_are_counted() -> None:
    texts = [f"rule r{number} {{ condition: filesize > 0 }}" for number in range(HITS_LIMIT + 3)]
    hits = rule_set("private rule own { condition: filesize > 0 }", "\n".join(texts)).scan(b"x")
    assert [hit.rule for hit in hits.hits] == [f"r{number}" for number in range(HITS_LIMIT)]
    assert hits.more == 3


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("rule a {\n  condition: nowhere\n}", 2, "unknown identifier `nowhere`: this identifier has not been declared"),
        ("rule a { stringss }", 1, "syntax error: expecting"),
        ("\n\nrule a { condition: true }\nrule a { condition: true }", 4, "duplicate rule `a`"),
        ('include "other.yar"', 1, "include"),
        ('import "nothing"', 1, "unknown module `nothing`"),
        ("rule a { strings: $a = /(/ condition: $a }", 1, ""),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(text: str, line: int, message: str) -> None:
    files = [RuleFile(name="good.yar", text=EVIL), RuleFile(name="rules/bad.yar", text=text)]
    with pytest.raises(RulesRefused, match=r"rules/bad\.yar") as refused:
        compiled(files)
    flaw = refused.value.flaws[0]
    assert (flaw.file, flaw.line) == ("rules/bad.yar", line)
    assert message in flaw.message


def test_the_flaws_of_all_files_are_told_at_once() -> None:
    files = [RuleFile(name=name, text="rule a {") for name in ("a.yar", "b.yar")]
    with pytest.raises(RulesRefused) as refused:
        compiled(files)
    assert [flaw.file for flaw in refused.value.flaws] == ["a.yar", "b.yar"]


def test_a_scan_that_does_not_end_is_ended_and_the_next_one_is_as_ever() -> None:
    rules = rule_set(EVIL, ENDLESS, limit_s=1)
    assert rules.scan(b"endless").error == "took longer than 1 s to scan"
    assert [hit.rule for hit in rules.scan(b"evil-bytes").hits] == ["Evil"]


def test_what_is_no_compiled_rules_is_refused() -> None:
    with pytest.raises(OSError):
        RuleSet(b"no rules")


def test_where_there_is_no_yara_x_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows on Arm."""
    monkeypatch.setitem(sys.modules, "yara_x", None)
    with pytest.raises(NoYara, match="no wheel of it for Windows on Arm"):
        compiled([])


def test_a_place_is_remembered_where_a_condition_asks_for_no_more() -> None:
    (rule,) = rule_set("rule r { strings: $a = {00 00} condition: $a }")._scanner.scan(bytes(1000)).matching_rules
    assert [len(pattern.matches) for pattern in rule.patterns] == [1]


CONDITIONS = (
    "#a == 21",
    "#a in (60..300) == 17",
    "$a at 210",
    "$a in (205..300)",
    "any of them at 210",
    "any of them in (205..300)",
    "for any of ($a) : (# == 21 and @[21] == 210)",
    "for all i in (1..#a) : (@a[i] >= 50 and !a[i] == 3)",
    "not $a at 211",
)


def test_what_conditions_ask_of_more_places_is_answered() -> None:
    texts = [f'rule r{at} {{ strings: $a = "abc" condition: {one} }}' for at, one in enumerate(CONDITIONS)]
    hits = rule_set("\n".join(texts)).scan(b"x" * 50 + b"abc" * 20 + b"y" * 100 + b"abc")
    assert len(hits.hits) == len(CONDITIONS)
