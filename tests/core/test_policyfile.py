"""The sections of a policy file: each value, each mistake."""

from __future__ import annotations

import tomllib

import policies
import pytest

from mitmsec.core.model import (
    Action,
    Delivery,
    Direction,
    OnFinding,
    Revocation,
    TlsVersion,
    Transparency,
    Upstream,
    UpstreamTrust,
)
from mitmsec.core.policy import Application, Rule
from mitmsec.core.policyfile import Context, read_application, read_inspect, read_inspectors, read_rule
from mitmsec.core.sniff import Protocol
from mitmsec.core.toml_lines import index
from mitmsec.core.toml_table import Notes, Table

LISTS = {
    "banks.txt": "\ufeff# ours\nBank.example  # one\n\nsparkasse-köln.example\n",
    "empty.txt": "# nothing\n",
    "bad.txt": "good.example\n*.bad.example\n10.0.0.1\n",
    "words.txt": "Adler\nProjekt X # secret\n",
}


def read_list(name: str) -> str:
    if name == "binary":
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    if name == "strange":
        raise OSError("no number")
    if name not in LISTS:
        raise FileNotFoundError(2, "No such file or directory", name)
    return LISTS[name]


def zone(name: str) -> bytes:
    if name == "Nowhere":
        raise ValueError("there is no Nowhere")
    return b"nonsense" if name == "Broken" else dict(policies.ZONES)[name]


def opened(text: str) -> tuple[Table, Context]:
    notes = Notes("f.toml", index(text))
    return Table(tomllib.loads(text), (), notes), Context(
        notes=notes,
        read_list=read_list,
        inspectors=("keywords", "other"),
        user_name=lambda user: {"1000": "joe"}.get(user, user),
        zone=zone,
        applications={"browsers": 3},
        rules={"taken": 4},
        categories={"finance": lambda: "# ours\nbank.example", "health": lambda: "clinic.example"},
        words={"keywords": ("x",)},
    )


def messages(context: Context) -> list[str]:
    return [f"{error.key or error.file}: {error.message}" for error in context.notes.errors]


def test_a_whole_rule() -> None:
    table, context = opened(
        """
        name = "r"
        application = ["browsers", "/usr/*"]
        host = ["A.example", "*.b.example", "@banks.txt"]
        category = ["finance", "finance"]
        port = [443, "8000 - 8999"]
        address = ["10.0.0.0/8", "2001:db8::1"]
        user = ["1000", "joe", "7"]
        protocol = ["tls", "http", "tls"]
        alpn = ["h2", "http/*"]
        ja4 = ["t13d*"]
        ech = true
        time = ["Mon-Fri 08:00-18:00 Europe/Berlin", "Sat UTC"]
        expires = 2026-01-05
        owner = "security"
        upstream = "block"
        upstream_trust = "public"
        upstream_revocation = "hard"
        upstream_sct = "refuse"
        min_tls = "1.3"
        action = "decrypt"
        reason = "because"
        inspect = ["keywords", "other", "keywords"]
        on_finding = "redact"
        delivery = "window"
        """
    )
    assert read_rule(table, context) == Rule(
        name="r",
        action=Action.DECRYPT,
        application=("browsers", "/usr/*"),
        host=("a.example", "*.b.example", "@banks.txt"),
        category=("finance",),
        port=((443, 443), (8000, 8999)),
        address=("10.0.0.0/8", "2001:db8::1/128"),
        user=("1000", "joe", "7"),
        protocol=(Protocol.TLS, Protocol.HTTP),
        alpn=("h2", "http/*"),
        ja4=("t13d*",),
        ech=(True,),
        time=("Mon-Fri 08:00-18:00 Europe/Berlin", "Sat UTC"),
        expires="2026-01-05",
        expires_s=int(policies.NOON_S) + 8 * 3600,
        owner="security",
        upstream=Upstream.BLOCK,
        upstream_trust=UpstreamTrust.PUBLIC,
        upstream_revocation=Revocation.HARD,
        upstream_sct=Transparency.REFUSE,
        min_tls=TlsVersion.TLS13,
        reason="because",
        inspect=("keywords", "other"),
        on_finding=OnFinding.REDACT,
        delivery=Delivery.WINDOW,
    )
    lists = [("@banks.txt", "bank.example\nxn--sparkasse-kln-smb.example"), ("category:finance", "bank.example")]
    assert [(one.name, one.text) for one in context.lists.values()] == lists
    assert messages(context) == []
    assert context.zones == dict(policies.ZONES)


def test_a_rule_may_expire_at_a_moment_of_a_zone() -> None:
    table, context = opened('name = "r"\naction = "block"\nexpires = 2026-01-05T12:00:00+01:00')
    rule = read_rule(table, context)
    assert (rule.expires, rule.expires_s) == ("2026-01-05 12:00:00+01:00", int(policies.NOON_S))
    assert (messages(context), context.zones) == ([], {})


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('name = "taken"', 'name: the name "taken" is taken since line 4'),
        ('name = "defaults"', 'name: "defaults" stands for'),
        ('action = "deny"', 'action: "deny" is not one of'),
        ('application = ["nobody"]', 'application[0]: no [[application]] is called "nobody"'),
        ('host = ["a b"]', 'host[0]: "a b" is not a host name; wanted'),
        ('host = ["*"]', 'host[0]: "*" is not a host name; for every host leave host out'),
        (
            'host = ["https://a.example:8443/x"]',
            'host[0]: "https://a.example:8443/x" is not a host name; did you mean "a.example"',
        ),
        (
            'host = [".a.example"]',
            'host[0]: ".a.example" is not a host name; did you mean "a.example", or "*.a.example"',
        ),
        ('host = ["*.*.a"]', 'host[0]: "*.a" is not a host name'),
        ('host = ["10.0.0.1"]', 'host[0]: "10.0.0.1" is an IP address; those stand under address'),
        ('host = ["@none.txt"]', "host[0]: cannot read none.txt: No such file or directory"),
        ('host = ["@strange"]', "host[0]: cannot read strange: no number"),
        ('host = ["@empty.txt"]', "host: the lists hold no names, so this can never match"),
        ('host = ["@bad.txt"]', 'bad.txt: "*.bad.example" is not a host name'),
        ("host = []", "host: an empty list can never match"),
        ("port = [true]", "port[0]: a port is a number or a range"),
        ('port = ["x"]', 'port[0]: a port is a number or a range like "8000-8999", not the text "x"'),
        ('port = ["9-1"]', "port[0]: the range 9-1 is empty"),
        ("port = [0]", "port[0]: 0 is not within 1-65535"),
        ('port = ["1-70000"]', "port[0]: 1-70000 is not within 1-65535"),
        ("port = 443", "port: a list is wanted"),
        (
            'address = ["10.0.0.1/8"]',
            'address[0]: "10.0.0.1/8" is an address inside a network: write "10.0.0.0/8" for the network, "10.0.0.1"',
        ),
        ('address = ["10.0.0.0/33"]', 'address[0]: "10.0.0.0/33" is neither an IP address nor a network like'),
        ('address = ["a.example"]', 'address[0]: "a.example" is a name, not an address; names stand under host'),
        ('address = ["fe80::1%eth0"]', 'address[0]: "fe80::1%eth0" names an interface'),
        ('address = ["::ffff:10.0.0.0/104"]', "address[0]: IPv4-mapped addresses are seen as IPv4"),
        ('delivery = "windows"', 'delivery: "windows" is not one of hold, tail, window; did you mean "window"?'),
        ('inspect = ["secrets"]', 'inspect[0]: no inspector is called "secrets"; there are: keywords, other'),
        (
            'protocol = ["https"]',
            'protocol[0]: "https" is not one of dns, ftp, http, http2-cleartext, http-proxy, imap',
        ),
        ('protocol = ["stmp"]', "protocol[0]: "),
        ("alpn = []", "alpn: an empty list can never match"),
        ("ech = 'yes'", "ech: true or false is wanted, not the text"),
        ("ja4 = [13]", "ja4[0]: a text is wanted, not the number 13"),
        ('category = ["helth"]', 'category[0]: "helth" is not one of finance, health; did you mean "health"'),
        ('time = ["Mon 8-9 UTC"]', 'time[0]: "Mon 8-9 UTC" is no time of the week; wanted: "Mon-Fri 08:00-18:00"'),
        ('time = ["Mon Nowhere"]', "time[0]: there is no Nowhere"),
        (
            'time = ["Mon Broken"]',
            'time[0]: what this machine has as the time zone "Broken" is none: Invalid TZif file: magic not found',
        ),
        ('expires = "2026-12-31"', "expires: a date is wanted, such as 2026-12-31, or a date and a time; not the text"),
        ("expires = 12:00:00", "expires: a date is wanted"),
        ("owner = 7", "owner: a text is wanted, not the number 7"),
        ('upstream = "ignore"', 'upstream: "ignore" is not one of accept, block, mirror'),
        ('upstream_trust = "all"', 'upstream_trust: "all" is not one of system, public'),
        ('upstream_revocation = "firm"', 'upstream_revocation: "firm" is not one of soft, hard, off'),
        ("upstream_sct = true", "upstream_sct: a text is wanted, not true"),
        ('min_tls = "1.1"', 'min_tls: "1.1" is not one of 1.2, 1.3'),
        ("page = 'yes'", "page: true or false is wanted, not the text"),
        ('hosts = ["x"]', 'hosts: unknown key; did you mean "host"?'),
    ],
)
def test_mistakes_in_a_rule(line: str, says: str) -> None:
    key = line.partition(" ")[0]
    rest = {"name": 'name = "r"', "action": 'action = "block"'}
    rest.pop(key, None)
    table, context = opened("\n".join([*rest.values(), line]))
    read_rule(table, context)
    assert messages(context)[0].startswith(says)


def test_a_rule_needs_a_name_and_an_action() -> None:
    table, context = opened("")
    read_rule(table, context)
    assert messages(context) == ["name: is missing", "action: is missing"]


def test_a_list_is_read_once_and_its_own_errors_have_its_own_lines() -> None:
    table, context = opened('name = "r"\naction = "block"\nhost = ["@bad.txt", "@bad.txt"]')
    assert read_rule(table, context).host == ("@bad.txt",)
    assert context.lists["@bad.txt"].text == "good.example"
    assert [(error.file, error.line) for error in context.notes.errors] == [("bad.txt", 2), ("bad.txt", 3)]


def test_keywords_without_words_find_nothing() -> None:
    table, context = opened('inspect = ["keywords", "other"]')
    context.words.clear()
    assert read_inspect(table, context) == ("keywords", "other")
    assert messages(context)[0].startswith("inspect[0]: keywords has nothing to look for")
    assert len(messages(context)) == 1


def test_inspectors_take_words_and_lists_of_words() -> None:
    table, context = opened(
        """
        [keywords]
        words = ["Adler", "b"]
        lists = ["words.txt", "@none.txt", "binary"]
        [other]
        colour = 1
        [secrets]
        """
    )
    read_inspectors(table, context)
    assert context.words == {"keywords": ("Adler", "b", "Projekt X"), "other": ()}
    assert messages(context) == [
        "keywords.lists[1]: cannot read none.txt: No such file or directory",
        "keywords.lists[2]: cannot read binary: it is not UTF-8 text",
        "other.colour: unknown key",
        "secrets: no inspector has this name; there are: keywords, other",
    ]


def test_a_whole_application() -> None:
    table, context = opened(
        f'name = "x"\npath = ["/a/*"]\nuser = ["joe"]\nchildren = true\nsha256 = ["{"AB" * 32}"]\nprocess_name = ["y"]'
    )
    application = read_application(table, context)
    assert application == Application(
        name="x", path=("/a/*",), user=("joe",), children=True, sha256=("ab" * 32,), process_name=("y",)
    )
    why = "of a parent only path and pid are known: children needs one of these, no process_name, sha256 or signer"
    assert messages(context) == [f"children: {why}"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "browsers"\nuser = ["x"]', ['name: the name "browsers" is taken since line 3']),
        ('name = "a/b"\nuser = ["x"]', ["name: a name cannot contain / \\ * ?: those mark path globs"]),
        ('name = "x"', [": selects nothing: give path, process_name, user, sha256, service, signer, container or pid"]),
        ('name = "x"\nsigner = ["y", ""]', ["signer[1]: a text is wanted, not an empty text"]),
        ('name = "x"\npath = ["/y"]\nsigner = ["y"]\nchildren = true', ["children: of a parent only path and pid"]),
        ('name = "x"\nservice = ["windows:a/b"]', ['service[0]: "windows:a/b" names no service: a name has 1 to 256']),
        ('name = "x"\nservices = ["y.service"]\npid = [1]', ['services: unknown key; did you mean "service"?']),
        (
            'name = "x"\nservice = ["a.service", "b"]',
            ['service[1]: "b" is no unit that programs run in: those end in .s'],
        ),
        (
            'name = "x"\nservice = ["nginx.service"]\nchildren = true',
            ["children: of a parent only path and pid are known"],
        ),
        ('name = "x"\nservice = []', ["service: an empty list can never match"]),
        ('name = "x"\ncontainer = ["*:*", "web"]', ['container[1]: "web" names no container: write 12 or more digits']),
        ('name = "x"\ncontainer = ["abc123"]', ['container[0]: "abc123" names no container: write 12 or more digits']),
        ('name = "x"\ncontainer = [12]', ["container[0]: a text is wanted, not the number 12"]),
        ('name = "x"\npid = ["7"]', ['pid[0]: a pid is a number, not the text "7"']),
        ('name = "x"\npid = [7, true]', ["pid[1]: a pid is a number, not true"]),
        ('name = "x"\npid = [0]', ["pid[0]: 0 is not within 1-4294967295"]),
        ('name = "x"\npid = 7', ["pid: a list is wanted, not the number 7"]),
        ('name = "x"\npath = ["curl"]', ['path[0]: "curl" is no path; for a program anywhere write "*/curl"']),
        ('name = "x"\nsha256 = ["12"]', ["sha256[0]: 64 hexadecimal digits are wanted"]),
        ('name = "x"\nuser = ["y"]\nchildren = true', ["children: of a parent only path and pid are known"]),
    ],
)
def test_mistakes_in_an_application(text: str, says: list[str]) -> None:
    table, context = opened(text)
    read_application(table, context)
    assert len(messages(context)) == len(says)
    assert all(got.removeprefix("f.toml").startswith(want) for got, want in zip(messages(context), says, strict=True))


def test_an_application_may_be_a_process_a_unit_or_a_container() -> None:
    digits = "AB" * 8
    table, context = opened(
        f'name = "x"\npid = [7, 4194304]\nservice = ["nginx.service", "user@*"]\ncontainer = ["{digits}", "lxc:Web"]\n'
        "children = true"
    )
    assert read_application(table, context) == Application(
        name="x",
        pid=(7, 4194304),
        service=("nginx.service", "user@*"),
        container=(digits.lower(), "lxc:Web"),
        children=True,
    )
    assert messages(context) == []


def test_an_application_may_be_who_signed_it_or_a_service_of_windows() -> None:
    table, context = opened('name = "x"\nsigner = ["A Corporation", "CN=B, *"]\nservice = ["windows:Dnscache", "*"]')
    signed = Application(name="x", signer=("A Corporation", "CN=B, *"), service=("windows:Dnscache", "*"))
    assert read_application(table, context) == signed
    assert messages(context) == []


def test_a_rule_may_be_for_incoming_connections() -> None:
    table, context = opened('name = "partners"\naction = "bypass"\ndirection = "inbound"\nport = [443]')
    rule = read_rule(table, context)
    assert (rule.direction, rule.port, messages(context)) == (Direction.INBOUND, ((443, 443),), [])


def test_incoming_connections_may_be_decrypted_and_inspected() -> None:
    table, context = opened('name = "r"\naction = "decrypt"\ndirection = "inbound"\ninspect = ["keywords"]')
    rule = read_rule(table, context)
    assert (rule.action, rule.direction, rule.inspect) == (Action.DECRYPT, Direction.INBOUND, ("keywords",))
    assert messages(context) == []


def test_incoming_connections_have_no_names() -> None:
    table, context = opened('name = "r"\naction = "bypass"\ndirection = "inbound"\nhost = ["a.example"]')
    read_rule(table, context)
    assert messages(context) == ["host: of connections that come in no name is known"]


def test_a_direction_is_one_of_two() -> None:
    table, context = opened('name = "r"\naction = "bypass"\ndirection = "in"')
    read_rule(table, context)
    assert messages(context)[0].startswith('direction: "in" is not one of inbound, outbound')
