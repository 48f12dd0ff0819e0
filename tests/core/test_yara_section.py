"""The files of rules that a policy names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest

from mitmsec.config import PolicyErrors, parse_policy
from mitmsec.core.policy import DEFAULT_POLICY, Policy

RULE = '[[rule]]\nname = "r"\naction = "decrypt"\ninspect = ["yara"]\n'


def read(section: str, files: Mapping[str, str], told: dict[str, str] | None = None) -> Policy:
    return parse_policy(
        f"version = 1\n{section}\n{RULE}",
        file="p.toml",
        read_list=lambda name: files[name] if name in files else _missing(name),
        rule_file=({} if told is None else told).__setitem__,
    )


def _missing(name: str) -> str:
    raise FileNotFoundError(2, "No such file or directory", name)


def errors(section: str, files: Mapping[str, str]) -> list[str]:
    with pytest.raises(PolicyErrors) as raised:
        read(section, files)
    return [str(error) for error in raised.value.errors]


def test_a_policy_holds_names_and_hashes_and_who_compiles_is_told_the_texts() -> None:
    files, told = {"rules/a.yar": "rule a {}", "b.yar": "rule b {}"}, dict[str, str]()
    policy = read('[inspector.yara]\nrules = ["@rules/a.yar", "b.yar"]', files, told)
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in files.values()]
    assert policy.inspectors == (
        ("yara", tuple(f"{name} sha256:{sha256}" for name, sha256 in zip(files, hashes, strict=True))),
    )
    assert told == files
    assert policy.scans
    assert not DEFAULT_POLICY.scans


def test_other_rules_are_another_policy() -> None:
    section = '[inspector.yara]\nrules = ["@a.yar"]'
    assert read(section, {"a.yar": "1"}).fingerprint != read(section, {"a.yar": "2"}).fingerprint


@pytest.mark.parametrize(
    ("section", "error"),
    [
        ("", 'p.toml:6: rule "r": inspect[0]: yara has nothing to look for; add [inspector.yara] with rules'),
        (
            '[inspector.yara]\nrules = ["@gone.yar"]',
            "p.toml:3: inspector.yara.rules[0]: cannot read gone.yar: No such file or directory",
        ),
        ('[inspector.yara]\nrules = "a.yar"', 'p.toml:3: inspector.yara.rules: a list is wanted, not the text "a.yar"'),
        ('[inspector.yara]\nwords = ["x"]', "p.toml:3: inspector.yara.words: unknown key"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(section: str, error: str) -> None:
    found = errors(section, {})
    assert [one for one in found if one.startswith(error)], found
