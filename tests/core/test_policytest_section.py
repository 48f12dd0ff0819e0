"""The section [[test]]: each value, each mistake."""

from __future__ import annotations

import tomllib

import policies
import pytest

from mitmsec.core.model import Action, Direction
from mitmsec.core.policy import PolicyTest
from mitmsec.core.policyfile import Context
from mitmsec.core.policytest_section import read_test
from mitmsec.core.sniff import Protocol
from mitmsec.core.toml_lines import index
from mitmsec.core.toml_table import Notes, Table


def opened(text: str) -> tuple[Table, Context]:
    notes = Notes("f.toml", index(text))
    context = Context(
        notes=notes,
        read_list=lambda name: "",
        inspectors=(),
        user_name=lambda user: {"1000": "joe"}.get(user, user),
        rules={"taken": 4},
        zone=dict(policies.ZONES).__getitem__,
    )
    return Table(tomllib.loads(text), (), notes), context


def messages(context: Context) -> list[str]:
    return [f"{error.key}: {error.message}" for error in context.notes.errors]


def test_a_test_may_be_about_a_unit_and_a_container() -> None:
    whole = f"podman:{'ab' * 32}"
    table, context = opened(
        f'application = "/x"\nexpect = "block"\nservice = "a.scope"\ncontainer = "{whole}"\nsigner = "A"'
    )
    test = read_test(table, context)
    assert (test.service, test.container, test.signer) == ("a.scope", whole, "A")
    assert messages(context) == []


def test_a_whole_test() -> None:
    table, context = opened(
        '\napplication = "/x"\nhost = "B\u00fccher.example"\nport = 80\naddress = "2001:DB8::1"\nuser = "joe"\n'
        'expect = "capture"\nrule = "taken"'
    )
    assert read_test(table, context) == PolicyTest(
        application="/x",
        host="xn--bcher-kva.example",
        port=80,
        address="2001:db8::1",
        user="joe",
        expect=Action.CAPTURE,
        rule="taken",
        line=1,
    )
    assert messages(context) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('application = "curl"', 'application: the path of a program is wanted, such as "/usr/bin/curl"'),
        ('rule = "nobody"', 'rule: no rule is called "nobody"'),
        ('host = "10.0.0.1"', 'host: "10.0.0.1" is an IP address'),
        ("port = true", "port: a port is a number within 1-65535, not "),
        ("port = 0", "port: a port is a number within 1-65535, not "),
        ('address = "x"', 'address: "x" is not an IP address'),
        ('service = "nginx"', 'service: "nginx" is no unit that programs run in'),
        ('service = "nginx.*"', 'service: "nginx.*" is no unit that programs run in'),
        ('service = "windows:"', 'service: "windows:" names no service'),
        (f'container = "{"ab" * 6}"', f'container: "{"ab" * 6}" is no container: write "runtime:id"'),
        ('protocol = "https"', 'protocol: "https" is not one of dns, ftp, http, http2-cleartext, http-proxy, imap'),
        ('protocol = "ssh"\nech = true', "protocol: alpn, ja4 and ech are TLS's"),
        ('protocol = "ssh"\nja4 = "x"', "protocol: alpn, ja4 and ech are TLS's"),
        ("time = 2026-01-05", "time: a moment is wanted, such as 2026-12-31T12:00:00, not a whole day"),
        ('time = "noon"', "time: a date is wanted"),
        ('protocol = "dns"\nhost = "a.example"', "host: dns shows no name"),
        ('expects = "x"', 'expects: unknown key; did you mean "expect"?'),
    ],
)
def test_mistakes_in_a_test(line: str, says: str) -> None:
    first = "" if line.startswith("application") else 'application = "/x"\n'
    table, context = opened(f'{first}expect = "block"\n{line}')
    read_test(table, context)
    assert [message.startswith(says) for message in messages(context)] == [True]


def test_a_test_may_expect_the_defaults() -> None:
    table, context = opened('application = "/x"\nexpect = "block"\nrule = "defaults"')
    assert read_test(table, context).rule == "defaults"
    assert messages(context) == []


def test_a_test_may_be_of_an_incoming_connection() -> None:
    table, context = opened('application = "/usr/sbin/nginx"\nexpect = "bypass"\ndirection = "inbound"')
    assert read_test(table, context).direction is Direction.INBOUND
    assert messages(context) == []


def test_a_test_may_say_what_the_first_bytes_are() -> None:
    table, context = opened(
        'application = "/x"\nexpect = "block"\nuser = "1000"\nprotocol = "tls"\nalpn = ["h2"]\nja4 = "t13"\n'
        "ech = true\ntime = 2026-01-05T16:00:00"
    )
    test = read_test(table, context)
    assert test.at_s == policies.NOON_S
    assert (test.user, test.protocol, test.alpn, test.ja4, test.ech) == ("joe", Protocol.TLS, ("h2",), "t13", True)
    assert messages(context) == []
