"""`[[inbound]]`: each value, each mistake."""

from __future__ import annotations

import tomllib

import pytest

from mitmsec.core.inbound_section import Pair, read_inbound, unread_pair
from mitmsec.core.known_service import KnownService
from mitmsec.core.policyfile import Context
from mitmsec.core.toml_lines import index
from mitmsec.core.toml_table import Notes, Table

FOUND = Pair(names=("shop.example",), chain=(b"leaf", b"issuer"), sha256="ab", not_after_s=7, key_bytes=9)


def read(text: str, pair: Pair = FOUND) -> tuple[KnownService, list[str]]:
    notes = Notes("p.toml", index(text))
    context = Context(notes=notes, read_list=lambda name: "a.example\n", inspectors=())
    service = read_inbound(Table(tomllib.loads(text), (), notes), context, {"taken": 4}, lambda *_: pair)
    return service, [f"{error.key}: {error.message}" for error in notes.errors]


def test_a_whole_entry() -> None:
    service, errors = read(
        'name = "shop"\ncertificate = "c.pem"\nkey = "k.pem"\n'
        'host = ["Shop.example", "@list"]\nport = [443, "8000-8009"]'
    )
    assert errors == []
    assert service == KnownService(
        name="shop",
        certificate="c.pem",
        key="k.pem",
        host=("shop.example", "a.example", "*.a.example"),
        port=((443, 443), (8000, 8009)),
        names=("shop.example",),
        chain=(b"leaf", b"issuer"),
        sha256="ab",
        not_after_s=7,
        key_bytes=9,
    )


GOOD = 'name = "s"\ncertificate = "c.pem"\nkey = "k.pem"\n'


@pytest.mark.parametrize(
    ("text", "pair", "says"),
    [
        ('certificate = "c"\nkey = "k"', FOUND, ["name: is missing"]),
        ('name = "taken"\ncertificate = "c"\nkey = "k"', FOUND, ['name: the name "taken" is taken since line 4']),
        ('name = "s"', FOUND, ["certificate: is missing", "key: is missing"]),
        (GOOD + "port = [0]", FOUND, ["port[0]: 0 is not within 1-65535"]),
        (GOOD + "prot = [1]", FOUND, ['prot: unknown key; did you mean "port"?']),
        (GOOD + 'host = ["*"]', FOUND, ['host[0]: "*" is not a host name; for every host leave host out']),
        (GOOD, Pair(certificate_flaw="bad", key_flaw="worse"), ["certificate: bad", "key: worse"]),
        (GOOD, Pair(chain=(b"leaf",)), ["certificate: names no host, so host has to"]),
    ],
)  # fmt: skip
def test_every_mistake_is_told_at_its_key(text: str, pair: Pair, says: list[str]) -> None:
    assert read(text, pair)[1] == says


@pytest.mark.parametrize("inline", ["-----BEGIN PRIVATE KEY----- c2VjcmV0", '""c2Vj\ncmV0""'])
def test_a_key_in_the_policy_itself_is_refused_without_being_quoted_or_kept(inline: str) -> None:
    def asked(certificate: str, key: str) -> Pair:
        raise AssertionError("no file is looked for")

    text = f'name = "s"\ncertificate = "c.pem"\nkey = "{inline}"\n'
    notes = Notes("p.toml", index(text))
    context = Context(notes=notes, read_list=lambda name: "", inspectors=())
    service = read_inbound(Table(tomllib.loads(text), (), notes), context, {}, asked)
    assert [error.message for error in notes.errors] == ["the name of a file is wanted, not what is in it"]
    assert (service.certificate, service.key) == ("c.pem", "")


def test_a_certificate_without_names_is_fine_where_hosts_are_written() -> None:
    assert read(GOOD + 'host = ["a.example"]', Pair(chain=(b"leaf",)))[1] == []


def test_who_cannot_look_into_files_takes_them_as_they_are() -> None:
    assert unread_pair("c.pem", "k.pem") == Pair()
