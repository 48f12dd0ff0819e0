"""A policy file becomes a policy, or every error in it at once."""

from __future__ import annotations

import os
import subprocess
import sys
import zoneinfo
from pathlib import Path

import msgspec
import policies
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec import config
from mitmsec.config import (
    ConfigError,
    PolicyErrors,
    load_policy,
    load_policy_and_text,
    named_user,
    parse_policy,
    zone_data,
)
from mitmsec.core.hours import Clocks
from mitmsec.core.inbound_section import Pair
from mitmsec.core.model import (
    Action,
    OnFailure,
    Quic,
    Revocation,
    Transparency,
    UnprovenName,
    Upstream,
    UpstreamTrust,
)
from mitmsec.core.policy import Policy

GOOD = r"""
version = 1
[defaults]
action = "bypass"
on_failure = "closed"
quic = "decrypt"
unproven_name = "decrypt"
upstream = "block"
upstream_roots = ["corp.pem"]
upstream_trust = "public"
upstream_revocation = "hard"
upstream_sct = "refuse"
inspect = ["keywords"]

[inspector.keywords]
words = ["Adler"]

[[application]]
name = "browsers"
path = ["/usr/lib/firefox/*", "C:\\Program Files\\*\\chrome.exe"]
children = true

[[rule]]
name = "banks"
application = ["browsers"]
host = ["*.bank.example", "@lists/finance.txt"]
action = "bypass"

[[rule]]
name = "rest"
action = "decrypt"

[[test]]
application = "/usr/lib/firefox/firefox"
host = "login.bank.example"
expect = "bypass"
rule = "banks"
"""
FILES = {"corp.pem": "-----BEGIN CERTIFICATE-----\n", "lists/finance.txt": "finance.example\n", "no.pem": "x\n"}


def read_list(name: str) -> str:
    if name not in FILES:
        raise FileNotFoundError(2, "No such file or directory")
    return FILES[name]


def parse(text: str) -> Policy:
    return parse_policy(text, file="p.toml", read_list=read_list)


def broken(text: str) -> tuple[ConfigError, ...]:
    with pytest.raises(PolicyErrors) as caught:
        parse(text)
    assert str(caught.value) == "\n".join(str(error) for error in caught.value.errors)
    return caught.value.errors


def errors(text: str) -> list[str]:
    return [str(error) for error in broken(text)]


def test_a_whole_policy() -> None:
    policy = parse(GOOD)
    assert (policy.action, policy.on_failure, policy.quic) == (Action.BYPASS, OnFailure.CLOSED, Quic.DECRYPT)
    assert policy.unproven_name is UnprovenName.DECRYPT
    assert (policy.upstream, policy.upstream_roots, policy.inspect) == (Upstream.BLOCK, ("corp.pem",), ("keywords",))
    asked = (policy.upstream_trust, policy.upstream_revocation, policy.upstream_sct)
    assert asked == (UpstreamTrust.PUBLIC, Revocation.HARD, Transparency.REFUSE)
    assert policy.inspectors == (("keywords", ("Adler",)),)
    assert policy.rules[0].host == ("*.bank.example", "@lists/finance.txt")
    assert [(one.name, one.text) for one in policy.lists] == [("@lists/finance.txt", "finance.example")]
    assert [len(part) for part in (policy.applications, policy.rules, policy.tests)] == [1, 2, 1]


def test_the_shortest_policy_is_the_default_one() -> None:
    assert parse("version = 1") == Policy()


def test_all_errors_come_at_once_in_the_order_of_the_file() -> None:
    found = broken(
        """version = 2
colour = 1
[defaults]
action = "decript"
quic = "decript"
unproven_name = "refuse"
upstream_roots = ["none.pem", "no.pem"]
[[rule]]
name = "r"
action = "bypass"
on_finding = "block"
port = [443,
  "9-1"]
[[rule]]
name = "r"
action = "block"
[[rule]]
name = "all"
action = "block"
[[rule]]
name = "late"
action = "block"
"""
    )
    assert [(error.line, error.key, error.name) for error in found] == [
        (1, "version", ""),
        (2, "colour", ""),
        (4, "defaults.action", ""),
        (5, "defaults.quic", ""),
        (6, "defaults.unproven_name", ""),
        (7, "defaults.upstream_roots[0]", ""),
        (7, "defaults.upstream_roots[1]", ""),
        (11, "rule[0].on_finding", "r"),
        (13, "rule[0].port[1]", "r"),
        (15, "rule[1].name", "r"),
        (20, "rule[3]", "late"),
    ]
    assert str(found[8]) == 'p.toml:13: rule "r": port[1]: the range 9-1 is empty'
    assert str(found[10]).startswith('p.toml:20: rule "late": can never match: the earlier rule "all" takes every ')


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "p.toml:1: version: is missing: write version = 1"),
        ("version = true", "p.toml:1: version: only version = 1 is known here, not true"),
        ("version = 1\n[defaults]\nunproven_name = 'x'", 'p.toml:3: defaults.unproven_name: "x" is not one of allow'),
        ("version = 1\n\na = = 2", "p.toml:3: not valid TOML, column 5: a value is missing here"),
        ("version = 1\na = [1,\n\n", "p.toml:2: not valid TOML, at the end: a value is missing here"),
        (
            'version = 1\n[inspector.keywords]\nwords=["x"]\n[defaults]\naction="bypass"\ninspect=["keywords"]',
            "p.toml:6: defaults.inspect: nothing is decrypted",
        ),
    ],
)
def test_single_errors(text: str, says: str) -> None:
    (found,) = errors(text)
    assert found.startswith(says)


def test_errors_in_a_list_come_after_those_of_the_file() -> None:
    FILES["bad.txt"] = "a b\n"
    text = 'version = 1\n[[rule]]\nname = "r"\naction = "block"\nhost = ["@bad.txt", "x y"]'
    assert [line.partition(": ")[0] for line in errors(text)] == ["p.toml:5", "bad.txt:1"]


KEYS = st.sampled_from(
    ["version", "defaults", "rule", "application", "test", "name", "action", "host", "port", "inspector"]
)
VALUES = st.sampled_from(
    ["1", '"x"', "[]", "[1]", '["a"]', "{}", "[{}]", '[{name="a", action="block"}]', "true", "1979-05-27"]
)
LINES = st.one_of(
    st.builds("{} = {}".format, KEYS, VALUES), st.builds("[{}]".format, KEYS), st.builds("[[{}]]".format, KEYS)
)


@given(st.one_of(st.text(max_size=60), st.lists(LINES, max_size=10).map("\n".join)))
def test_any_text_is_a_policy_or_has_errors_with_a_line_that_exists(text: str) -> None:
    try:
        policy = parse(text)
    except PolicyErrors as caught:
        found = caught.errors
    else:
        assert policy.version == 1
        return
    assert found
    assert all(1 <= error.line <= text.count("\n") + 1 and error.message for error in found)


def test_a_file_is_read_with_what_lies_beside_it(tmp_path: Path) -> None:
    for name, text in {**FILES, "p.toml": GOOD}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert load_policy(tmp_path / "p.toml") == parse(GOOD)
    assert load_policy_and_text(tmp_path / "p.toml") == (parse(GOOD), GOOD)


def test_a_file_that_cannot_be_read_is_an_error_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    with pytest.raises(PolicyErrors) as missing:
        load_policy(path)
    assert missing.value.errors == (
        ConfigError(file=str(path), line=0, key="", message="cannot be read: No such file or directory"),
    )
    path.write_bytes(b"version = 1\n# \xff")
    with pytest.raises(PolicyErrors) as binary:
        load_policy(path)
    assert binary.value.errors == (ConfigError(file=str(path), line=2, key="", message="is not UTF-8 text"),)


def test_a_thousand_rules_are_checked() -> None:
    rules = "".join(f'[[rule]]\nname = "{n}"\naction = "block"\nhost = ["*.h{n}.example"]\n' for n in range(1000))
    assert len(parse("version = 1\n" + rules).rules) == 1000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version = 1\na = " + "9" * 5000, "p.toml:1: not a policy: a number has thousands of digits"),
        (
            "version = 1\n" + ".".join("a" * 50_000) + " = 1",
            "p.toml:2: not a policy: a key has more than a hundred parts; write a text that has dots between quotes",
        ),
        ("version = 0x" + "f" * 5000, "p.toml:1: not a policy: a number has thousands of digits"),
        ("version = 1\na = " + "[" * 5000, "p.toml:"),
        (
            'version = 1\n[inspector.keywords]\nlists = ["a\\u0000b"]',
            "p.toml:3: inspector.keywords.lists[0]: cannot read a\0b: ",
        ),
    ],
    ids=["digits", "parts", "more digits", "depth", "no file name"],
)
def test_what_python_itself_gives_up_on_is_an_error_of_the_policy(text: str, says: str) -> None:
    def read(name: str) -> str:
        return Path(name).read_text()

    with pytest.raises(PolicyErrors) as caught:
        parse_policy(text, file="p.toml", read_list=read)
    (error,) = caught.value.errors
    assert str(error).startswith(says)


def test_line_ends_and_a_byte_order_mark_of_other_systems_change_nothing_but_the_text(tmp_path: Path) -> None:
    """The text that is hashed is the file's, byte for byte."""
    path = tmp_path / "p.toml"
    path.write_bytes(b"\xef\xbb\xbfversion = 1\r\n[defaults]\r\naction = 'bypass'\r\n")
    policy, text = load_policy_and_text(path)
    assert policy.action is Action.BYPASS
    assert text.encode() == path.read_bytes()
    path.write_bytes(path.read_bytes() + b"colour = 1\r\n")
    with pytest.raises(PolicyErrors) as caught:
        load_policy(path)
    assert [error.line for error in caught.value.errors] == [4]


def test_a_pipe_that_nobody_writes_to_is_an_error_and_no_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(path := tmp_path / "pipe")
    monkeypatch.setattr(config, "PIPE_DEADLINE_S", 0.05)
    with pytest.raises(PolicyErrors, match="cannot be read: nothing came out of this pipe within"):
        load_policy(path)


def test_a_policy_or_a_list_without_an_end_is_an_error_and_no_full_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "FILE_LIMIT_BYTES", 1000)
    with pytest.raises(PolicyErrors, match="cannot be read: it is longer than 1000 bytes"):
        load_policy(Path("/dev/zero"))
    path = tmp_path / "p.toml"
    path.write_text('version = 1\n[[rule]]\nname = "a"\naction = "block"\nhost = ["@/dev/zero"]\n')
    with pytest.raises(PolicyErrors, match="cannot read /dev/zero: it is longer than 1000 bytes"):
        load_policy(path)


def test_the_last_day_of_the_calendar_is_no_expiry_and_a_number_of_thousands_of_digits_no_user(
    tmp_path: Path,
) -> None:
    path = tmp_path / "p.toml"
    path.write_text('version = 1\n[[rule]]\nname = "a"\naction = "block"\nexpires = 9999-12-31\n')
    with pytest.raises(PolicyErrors, match="expires: 9999-12-31 is the calendar's last day"):
        load_policy(path)
    assert config.named_user("9" * 5000) == "9" * 5000


def test_a_pipe_may_hold_the_policy_as_the_shells_process_substitution_does(tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "pipe")
    script = 'sleep 0.2; printf "version = 1\\n"; sleep 0.2; printf "[defaults]\\naction = \\"block\\"\\n"'
    with subprocess.Popen(["sh", "-c", f"({script}) > '{path}'"]):
        assert load_policy(path).action is Action.BLOCK


def test_the_defaults_say_what_becomes_of_incoming_connections() -> None:
    def read(defaults: str) -> Policy:
        return parse_policy(f"version = 1\n[defaults]\n{defaults}", file="p", read_list=str)

    assert read("").inbound is read('inbound = "bypass"').inbound is Action.BYPASS
    with pytest.raises(PolicyErrors, match=r"defaults.inbound: there is no \[\[inbound\]\] whose key could decrypt"):
        read('inbound = "decrypt"')


INBOUND = """
version = 1
[defaults]
inbound = "decrypt"
inspect = ["keywords"]
[inspector.keywords]
words = ["Adler"]
[[inbound]]
name = "shop"
certificate = "tls/shop.pem"
key = "tls/shop.key"
"""


def test_services_are_in_the_policy_with_what_their_files_hold() -> None:
    asked = []

    def pair(certificate: str, key: str) -> Pair:
        asked.append((certificate, key))
        return Pair(names=("shop.example",), chain=(b"leaf",), sha256="ab", key_bytes=9)

    policy = parse_policy(INBOUND, file="p", read_list=str, pair=pair)
    assert asked == [("tls/shop.pem", "tls/shop.key")]
    (service,) = policy.services
    assert (service.names, service.sha256, service.key_bytes) == (("shop.example",), "ab", 9)
    assert msgspec.json.decode(msgspec.json.encode(policy), type=Policy) == policy


def test_flaws_of_services_stand_among_the_others_with_line_and_name() -> None:
    text = INBOUND + 'prot = [1]\n[[inbound]]\nname = "shop"\ncertificate = "b"\nkey = "b"\n'
    with pytest.raises(PolicyErrors) as caught:
        parse_policy(text, file="p", read_list=str, pair=lambda *_: Pair(key_flaw="k is none"))
    assert str(caught.value).splitlines() == [
        'p:11: inbound "shop": key: k is none',
        'p:12: inbound "shop": prot: unknown key; did you mean "port"?',
        'p:14: inbound "shop": name: the name "shop" is taken since line 9',
        'p:16: inbound "shop": key: k is none',
    ]


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("upstream_trust", "public, system"),
        ("upstream_revocation", "hard, off, soft"),
        ("upstream_sct", "off, refuse, report"),
    ],
)
def test_what_an_origin_must_prove_is_one_of_few_words(key: str, known: str) -> None:
    (error,) = broken(f'version = 1\n[defaults]\n{key} = "strict"\n')
    assert (error.line, error.key) == (3, f"defaults.{key}")
    assert all(word in error.message for word in known.split(", "))


def test_the_number_of_a_user_stands_for_itself_and_for_the_name_that_it_has() -> None:
    text = (
        'version = 1\n[[application]]\nname = "a"\nuser = ["0"]\n[[rule]]\nname = "r"\naction = "block"\n'
        'user = ["0", "root", "nobody-here", "4294967294"]\n'
    )
    policy = parse_policy(text, file="p.toml", read_list=lambda name: "", user_name=named_user)
    assert policy.applications[0].user == ("0", "root")
    assert policy.rules[0].user == ("0", "root", "nobody-here", "4294967294")


def test_a_policy_holds_the_time_zones_that_its_rules_ask_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "Mars").mkdir()
    (tmp_path / "Mars/Base").write_bytes(policies.BERLIN)
    monkeypatch.setattr(zoneinfo, "TZPATH", (str(tmp_path / "none"), str(tmp_path)))
    file = tmp_path / "p.toml"
    file.write_text('version = 1\n[[rule]]\nname = "r"\naction = "block"\ntime = ["Mon Mars/Base", "Tue UTC"]\n')
    assert load_policy(file).zones == (("Mars/Base", policies.BERLIN),)
    file.write_text(file.read_text().replace("Base", "Dome"))
    with pytest.raises(PolicyErrors, match=r"time\[0\]: the time zone .Mars/Dome. is not known here"):
        load_policy(file)


def test_local_time_is_what_the_machine_says_or_utc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "LOCAL_ZONE", str(tmp_path / "localtime"))
    assert Clocks((("local", zone_data("local")),)).minute_of_week("local", policies.NOON_S) == 11 * 60
    (tmp_path / "localtime").write_bytes(policies.BERLIN)
    assert zone_data("local") == policies.BERLIN
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(config, "LOCAL_ZONE", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="name it"):
        zone_data("local")


def test_a_policy_that_is_read_without_time_zones_knows_none() -> None:
    text = 'version = 1\n[[rule]]\nname = "r"\naction = "block"\nexpires = 2026-12-31\n'
    with pytest.raises(PolicyErrors, match='the time zone "local" is not known here'):
        parse_policy(text, file="p.toml", read_list=lambda name: "")
