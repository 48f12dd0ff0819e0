"""`[[client_certificate]]`: each value, each mistake, and the rules that name one."""

from __future__ import annotations

import pytest

from mitmsec.config import PolicyErrors, parse_policy
from mitmsec.core.identity import Identity
from mitmsec.core.inbound_section import Pair
from mitmsec.core.model import Endpoint, Process
from mitmsec.core.policy import Policy
from mitmsec.core.sniff import Shown

FOUND = Pair(chain=(b"leaf", b"issuer"), sha256="ab", not_after_s=7, key_bytes=9)
ENTRY = '[[client_certificate]]\nname = "partner"\ncertificate = "c.pem"\nkey = "k.pem"\n'
RULE = '[[rule]]\nname = "r"\naction = "decrypt"\nhost = ["api.test"]\nclient_certificate = "partner"\n'
SOMEBODY, WEB = Process(pid=1, exe="/usr/bin/app"), Endpoint(address="192.0.2.1", port=443)


def policy(text: str, pair: Pair = FOUND) -> Policy:
    return parse_policy("version = 1\n" + text, file="p", read_list=lambda name: "", pair=lambda *_: pair)


def errors(text: str, pair: Pair = FOUND) -> list[str]:
    with pytest.raises(PolicyErrors) as caught:
        policy(text, pair)
    return [f"{error.key}: {error.message}" for error in caught.value.errors]


def test_a_rule_says_whom_its_programs_are_to_origins() -> None:
    made = policy(ENTRY + RULE)
    assert made.identities == (
        Identity(
            name="partner",
            certificate="c.pem",
            key="k.pem",
            chain=(b"leaf", b"issuer"),
            sha256="ab",
            not_after_s=7,
            key_bytes=9,
        ),
    )
    assert made.at_hello(SOMEBODY, WEB, shown=Shown.of("api.test")).identity == "partner"
    assert made.at_hello(SOMEBODY, WEB, shown=Shown.of("www.test")).identity == ""
    assert (made.needs_keys, made.decrypts_inbound, made.certificates) == (True, False, ("ab",))
    assert not policy("").needs_keys


@pytest.mark.parametrize(
    ("text", "pair", "says"),
    [
        (ENTRY + ENTRY, FOUND, ['client_certificate[1].name: the name "partner" is taken since line 3']),
        (RULE, FOUND, ['rule[0].client_certificate: no [[client_certificate]] is called "partner"']),
        (ENTRY.replace('key = "k.pem"\n', ""), FOUND, ["client_certificate[0].key: is missing"]),
        (
            ENTRY.replace("k.pem", "-----BEGIN KEY"),
            FOUND,
            ["client_certificate[0].key: the name of a file is wanted, not what is in it"],
        ),
        (
            ENTRY,
            Pair(certificate_flaw="bad", key_flaw="worse"),
            ["client_certificate[0].certificate: bad", "client_certificate[0].key: worse"],
        ),
        (
            ENTRY + RULE.replace('"decrypt"', '"bypass"'),
            FOUND,
            ['rule[0].client_certificate: is for rules with action "decrypt", about connections that go out'],
        ),
    ],
)
def test_every_mistake_has_its_line(text: str, pair: Pair, says: list[str]) -> None:
    assert errors(text, pair) == says
