"""The rules are gitleaks', and where they differ it is said why."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec_addons.go_expressions import for_re
from mitmsec_addons.secret_rules import ADJUSTED, AllowList, entropy_bits, rules
from mitmsec_addons.secrets import known_rules

RULES = {rule.id: rule for rule in known_rules()}


def test_there_are_hundreds_and_each_says_which_words_it_needs() -> None:
    assert len(RULES) >= 200
    assert all(
        rule.words and all(word == word.lower() and word.isascii() for word in rule.words) for rule in RULES.values()
    )
    assert all(0 < rule.reach_bytes <= 4096 for rule in RULES.values())


def test_commits_are_nobodys_token() -> None:
    token = re.compile(for_re(RULES["sourcegraph-access-token"].expression))
    commit = "3f2a" * 10
    assert not token.search(f"commit {commit}\n")
    assert token.search(f'SOURCEGRAPH_TOKEN="{commit}"')
    assert token.search(f"sgp_{commit} ")


@pytest.mark.parametrize("body", ["\n", "\\n", "\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,0F\n\n"])
def test_a_private_key_needs_no_end(body: str) -> None:
    key = re.compile(for_re(RULES["private-key"].expression))
    assert key.search(f"-----BEGIN RSA PRIVATE KEY-----{body}{'MIIEpAIB' * 8}")
    assert not key.search("-----BEGIN RSA PRIVATE KEY-----\n…\n-----END RSA PRIVATE KEY-----")


def test_lists_by_path_are_left_out_and_with_them_what_is_only_meant_there() -> None:
    text = """
[allowlist]
regexes = ["^x$"]
stopwords = ["Sample"]
[[rules]]
id = "pkcs12"
path = "p12$"
%s
[[rules]]
id = "own"
regex = '(?i)own-([a-z]{4})$'
keywords = ["OWN-"]
entropy = 2
[[rules.allowlists]]
paths = ["README"]
[[rules.allowlists]]
regexTarget = "line"
regexes = ["import$"]
[[rules.allowlists]]
condition = "AND"
paths = ["bb$"]
regexes = ["LICENSE"]
"""
    others = "".join(
        f"[[rules]]\nid = '{name}'\nregex = '''{one.was or 'a'}'''\nkeywords = ['a']\n"
        for name, one in ADJUSTED.items()
    )
    *_, own = rules(text % others)
    assert (own.id, own.expression, own.words, own.min_entropy_bits) == ("own", r"(?i:own-([a-z]{4})\z)", ("own-",), 2)
    assert own.allowed == (AllowList("secret", ("^x\\Z",)), AllowList("line", ("import\\Z",)))
    assert (own.reach_bytes, own.is_assigned, own.stop_words) == (8, False, ("sample",))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("rules = []", "there is no rule"),
        ("".join(f"[[rules]]\nid = '{name}'\nregex = 'a'\nkeywords = ['a']\n" for name in ADJUSTED), "any more"),
    ],
)
def test_an_adjustment_to_what_is_not_there_is_an_error(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        rules(text)


def test_entropy() -> None:
    assert entropy_bits(b"") == 0
    assert entropy_bits(b"aaaa") == 0
    assert entropy_bits(b"abcd") == 2
    assert entropy_bits(bytes(range(256))) == 8
    assert entropy_bits(b"a" * 300 + b"b" * 300) == 1


WORDS = ["access", "API", "Api", "aPi", "auth", "credential", "creds", "KEY", "password", "passwd", "secret", "token"]


@given(
    st.lists(st.sampled_from([*WORDS, "_", " ", "=", ": ", ":=", '"', "x1y2z3a4b5", "a-b.c_d", ";", "\n"]), max_size=20)
)
def test_what_matches_begins_as_its_rule_says(words: list[str]) -> None:
    text = "".join([*words, ' = "x1y2z3a4b5c6";']).encode()
    told = [rule for rule in RULES.values() if rule.begins]
    assert [rule.id for rule in told] == ["generic-api-key"]
    for rule in told:
        found, begins = re.compile(for_re(rule.expression).encode()), tuple(word.encode() for word in rule.begins)
        matches = [at for at in range(len(text)) if found.match(text, at)]
        assert [at for at in matches if not text[at:].lower().startswith(begins)] == []
