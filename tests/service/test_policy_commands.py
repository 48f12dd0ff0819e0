"""`mitmsec policy`: statuses, what goes to which stream, and that every error is told."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mitmsec.service.policy_commands import policy
from mitmsec_certs import succession
from mitmsec_certs.ca_folder import About, CaKind
from mitmsec_certs.ceremony import lasting
from mitmsec_certs.constraints import written
from mitmsec_certs.keystore import open_keystore
from mitmsec_certs.origin_pki import origin_pki

GOOD = """version = 1
[inspector.keywords]
words = ["Adler"]
[[application]]
name = "browsers"
path = ["/usr/lib/firefox/*", "/bin/sh"]
children = true
[[rule]]
name = "banks"
application = ["browsers"]
host = ["*.bank.example"]
action = "bypass"
reason = "agreement 4.2"
[[rule]]
name = "inspected"
port = [443]
action = "decrypt"
inspect = ["keywords"]
on_finding = "block"
[[test]]
application = "/usr/lib/firefox/firefox"
host = "login.bank.example"
expect = "bypass"
rule = "banks"
"""
FAILING = """[[test]]
application = "/usr/bin/curl"
port = 80
expect = "block"
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "p.toml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.toml"
    path.write_text("version = 1\ncolour = 2\n[defaults]\nquic = 'ask'\n")
    return path


def run(*words: object) -> Result:
    """On a terminal that is wide enough for any folder that a test may have."""
    return CliRunner(env={"COLUMNS": "400"}).invoke(policy, [str(word) for word in words], catch_exceptions=False)


def objects(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_check_of_a_valid_file_says_what_is_in_it(good: Path) -> None:
    result = run("check", good)
    assert result.exit_code == 0
    assert "valid; applications: 1, rules: 2, tests: 1" in result.stdout
    assert not result.stderr


def test_check_as_json(good: Path) -> None:
    (summary,) = objects(run("check", good, "--json"))
    assert summary == {"valid": True, "file": str(good), "applications": 1, "rules": 2, "tests": 1, "warnings": []}


@pytest.mark.parametrize("command", [["check"], ["test"], ["explain", "--app", "/x"]])
def test_every_command_refuses_an_invalid_file_with_all_errors(bad: Path, command: list[str]) -> None:
    result = run(*command, bad)
    assert result.exit_code == 2
    assert not result.stdout
    assert f"{bad}:2: colour: unknown key\n" in result.stderr
    assert f"{bad}:4: defaults.quic: " in result.stderr
    assert "2 errors" in result.stderr


def test_errors_as_json_are_objects_on_stdout(bad: Path) -> None:
    result = run("check", bad, "--json")
    assert result.exit_code == 2
    assert not result.stderr
    assert [(one["valid"], one["line"], one["key"]) for one in objects(result)] == [
        (False, 2, "colour"),
        (False, 4, "defaults.quic"),
    ]


def test_one_error_is_one_error(tmp_path: Path) -> None:
    result = run("check", tmp_path / "none.toml")
    assert result.exit_code == 2
    assert "none.toml: cannot be read: No such file or directory" in result.stderr
    assert "1 error in" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("  mend it, then look again: ")
    assert result.stderr.endswith(f"policy check {tmp_path}/none.toml\n")


def test_explain_tells_the_decision_and_every_rule(good: Path) -> None:
    result = run("explain", good, "--app", "/usr/lib/firefox/firefox", "--host", "A.Bank.example")
    assert result.exit_code == 0
    assert result.stdout.startswith('bypass by rule "banks": agreement 4.2\n')
    assert "when the first bytes show the name" in result.stdout
    assert "+ host: a.bank.example is within *.bank.example" in result.stdout
    assert "too late" in result.stdout


def test_explain_without_a_name_says_what_it_answers_and_how_to_ask_for_more(good: Path) -> None:
    told = run("explain", good, "--app", "/usr/lib/firefox/firefox").stdout
    assert told.startswith('decrypt by rule "inspected"')
    assert "decided when the first bytes show no name; a name could change it: add --host\n" in told


def test_the_example_of_the_documentation_checks_and_its_tests_pass(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/policy.md").read_text()
    example = tmp_path / "policy.toml"
    example.write_text(page.partition("```toml\n")[2].partition("```")[0])
    assert run("check", example).exit_code == 0
    assert "1 of 1 tests passed" in run("test", example).stdout


def test_explain_says_that_a_page_is_a_decryption(tmp_path: Path) -> None:
    told = []
    for page in ("true", "false"):
        policy = tmp_path / f"{page}.toml"
        policy.write_text(f'version = 1\n[[rule]]\nname = "games"\nport = [443]\naction = "block"\npage = {page}\n')
        told.append(run("explain", policy, "--app", "/usr/bin/curl").stdout.splitlines())
    assert told[0][:2] == ['block by rule "games": rule "games" takes connections, port 443', told[0][1]]
    assert told[0][1] == "with a page; inside TLS that is a decryption"
    assert told[1] == [told[0][0], *told[0][2:]]


def test_explain_of_an_inspected_flow_that_is_decided_at_connect(good: Path) -> None:
    result = run("explain", good, "--app", "/usr/bin/curl", "--address", "192.0.2.1")
    assert "inspected by keywords; a finding means block; small requests are held for it" in result.stdout
    assert "decided at connect" in result.stdout
    assert "- application: /usr/bin/curl is none of browsers" in result.stdout


def test_explain_of_an_empty_policy_and_of_a_rule_without_conditions(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("version = 1")
    assert "decrypt by [defaults]: no rule matched" in run("explain", path, "--app", "/x").stdout
    path.write_text('version = 1\n[[rule]]\nname = "all"\naction = "block"')
    assert "no conditions" in run("explain", path, "--app", "/x").stdout


def test_explain_as_json(good: Path) -> None:
    words = [
        "--app",
        "/opt/x",
        "--parent",
        "/usr/lib/firefox/firefox",
        "--host",
        "a.bank.example",
        "--sha256",
        "AB" * 32,
    ]
    *rules, decision = objects(run("explain", good, *words, "--json"))
    assert [(rule["rule"], rule["accepts"], rule["decided"]) for rule in rules] == [
        ("banks", True, True),
        ("inspected", True, False),
    ]
    assert (decision["kind"], decision["rule"], decision["needs_name"]) == ("decision", "banks", True)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--host", "192.0.2.1", "give it with --address"),
        ("--host", "a b", "is not a host name"),
        ("--address", "a.example", "is not an IP address; a name is given with --host"),
        ("--port", "0", "range"),
        ("--sha256", "zz", "64 hexadecimal digits are wanted"),
        ("--sha256", "", "64 hexadecimal digits are wanted"),
        ("--user", "", "a user is wanted"),
        ("--unit", "nginx", 'did you mean "nginx.service"?'),
        ("--unit", "windows:", "names no service"),
        ("--container", "docker:web", "by an id of 64 digits, not by a name"),
        ("--pid", "0", "0 is not in the range"),
    ],
)
def test_explain_refuses_what_is_no_flow(good: Path, option: str, value: str, says: str) -> None:
    result = run("explain", good, "--app", "/x", option, value)
    assert result.exit_code == 2
    assert says in result.stderr


def test_tests_that_pass(good: Path) -> None:
    result = run("test", good)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "1 of 1 tests passed" in result.stdout


def test_a_test_that_fails_shows_expected_and_got_with_its_line(good: Path) -> None:
    good.write_text(GOOD + FAILING)
    result = run("test", good)
    assert result.exit_code == 1
    assert "1 of 2 tests passed" in result.stdout
    line = GOOD.count("\n") + 1
    assert f"{good}:{line}: /usr/bin/curl to a host that shows no name, port 80" in result.stderr
    assert "expected: block" in result.stderr
    assert 'got:      decrypt by "defaults"' in result.stderr


def test_tests_as_json(good: Path) -> None:
    good.write_text(GOOD + FAILING)
    result = run("test", good, "--json")
    assert result.exit_code == 1
    first, second = objects(result)
    assert first["passed"]
    assert not second["passed"]
    assert second["got"] == {"action": "decrypt", "rule": "defaults", "reason": "no rule matched; [defaults] decide"}


def test_a_file_without_tests_says_so(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("version = 1")
    result = run("test", path)
    assert result.exit_code == 0
    assert "has no [[test]]" in result.stderr


def test_a_policy_may_come_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it names is looked for in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts.txt").write_text("a.example\n")
    text = 'version = 1\n[[rule]]\nname = "r"\naction = "block"\nhost = ["@hosts.txt"]\n'
    assert "valid; applications: 0, rules: 1" in CliRunner().invoke(policy, ["check", "-"], input=text).stdout
    wrong = CliRunner().invoke(policy, ["check", "-"], input="version = 2")
    assert wrong.exit_code == 2
    assert "(standard input):1: version: only version = 1 is known here" in wrong.stderr


def test_what_was_found_out_about_the_question_is_told_once_everything_is_valid(good: Path, bad: Path) -> None:
    for words in (["--port", "0", good], [bad]):
        refused = run("explain", "--app", "sh", "--user", "no-such-user", *words)
        assert refused.exit_code == 2
        assert " is /" not in refused.stderr
        assert "no-such-user" not in refused.stderr
    told = run("explain", "--app", "sh", "--user", "no-such-user", good)
    assert told.exit_code == 0
    assert "sh is /" in told.stderr
    assert 'there is no user "no-such-user" here' in told.stderr


def test_explain_asks_about_a_unit_a_container_and_a_process(tmp_path: Path) -> None:
    file, whole = tmp_path / "p.toml", f"docker:{'ab' * 32}"
    criteria = ('service = ["nginx.*"]', f'container = ["{"AB" * 6}"]', "pid = [7]", 'signer = ["A"]')
    applications = "".join(f'[[application]]\nname = "a{n}"\n{one}\n' for n, one in enumerate(criteria))
    rules = "".join(
        f'[[rule]]\nname = "r{n}"\napplication = ["a{n}"]\naction = "block"\n' for n in range(len(criteria))
    )
    file.write_text(f"version = 1\n{applications}{rules}")
    for n, words in enumerate(
        (["--unit", "nginx.service"], ["--container", whole], ["--pid", "7"], ["--signer", "CN=A"])
    ):
        assert run("explain", file, "--app", "/x", *words).stdout.startswith(f'block by rule "r{n}"')
    told = run("explain", file, "--app", "/x", "--pid", "8", "--unit", "a.scope").stdout
    assert told.startswith("decrypt by [defaults]")
    assert "/x is none of a0 (service a.scope is not nginx.*)" in told
    assert "/x is none of a2 (pid 8 is not 7)" in told
    assert "/x is none of a3 (signer is not known)" in told
    told = run("explain", file, "--app", "/x", "--unit", "windows:Dnscache").stdout
    assert "/x is none of a0 (service windows:Dnscache is not nginx.*)" in told


def test_a_users_number_is_the_name_that_rules_are_asked_about(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    application = '[[application]]\nname = "roots"\nuser = ["root"]\n'
    file.write_text(f'version = 1\n{application}[[rule]]\nname = "r"\napplication = ["roots"]\naction = "block"\n')
    for user in ("root", "0"):
        assert run("explain", file, "--app", "/x", "--user", user).stdout.startswith('block by rule "r"')
    others = run("explain", file, "--app", "/x", "--user", "4294967294").stdout
    assert "/x is none of roots (user 4294967294 is not root)" in others


def test_words_that_the_inspector_refuses_are_an_error_of_the_policy(tmp_path: Path) -> None:
    """Found by `check`, not by a worker that cannot start."""
    file = tmp_path / "policy.toml"
    file.write_text('version = 1\n[inspector.keywords]\nwords = ["fine", "x"]\n')
    shown = CliRunner().invoke(policy, ["check", str(file)])
    assert shown.exit_code == 2
    assert f"{file}:3" in shown.stderr
    assert "'x'" in shown.stderr


def test_init_writes_a_policy_that_checks_and_whose_tests_pass(tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    assert "written" in run("init", path).stdout
    checked = run("check", path)
    assert (checked.exit_code, checked.stderr) == (0, "")
    assert "3 of 3 tests passed" in run("test", path).stdout
    assert run("init").stdout == path.read_text()


def test_init_never_writes_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    result = run("init", path)
    assert (result.exit_code, path.read_text()) == (2, "mine")
    assert "exists already" in result.stderr
    missing = run("init", tmp_path / "none" / "p.toml")
    assert missing.exit_code == 2
    assert "cannot be written: No such file or directory" in missing.stderr


def test_a_program_may_be_asked_about_by_the_name_that_a_shell_would_find(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules see the path that the kernel knows, so a link is followed, and what was found is said."""
    (tmp_path / "real").write_text("#!/bin/sh\n")
    (tmp_path / "real").chmod(0o755)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("explain", good, "--app", "link")
    assert result.exit_code == 0
    assert f"- application: {tmp_path}/real is none of browsers" in result.stdout
    assert f"link is {os.path.realpath(tmp_path)}/real here" in result.stderr


@pytest.mark.parametrize("path", ["/no/such/program", "C:\\Program Files\\x.exe", "c:/x.exe"])
def test_a_whole_path_is_asked_about_as_it_is(good: Path, path: str) -> None:
    result = run("explain", good, "--app", path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"- application: {path} is none of browsers" in result.stdout


@pytest.mark.parametrize("option", ["--app", "--parent"])
def test_a_program_that_is_not_found_here_needs_its_whole_path(good: Path, option: str) -> None:
    result = run("explain", good, *(["--app", "/x"] if option == "--parent" else []), option, "no-such-program")
    assert result.exit_code == 2
    assert 'no program "no-such-program" is found here; give its whole path' in result.stderr


def test_a_policy_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('version = 1\n[[rule]]\nname = "\\u001b[2J"\naction = "block"\nport = ["\\u001b[1m"]\n')
    result = run("check", path)
    assert result.exit_code == 2
    assert 'rule "\\x1b[2J": port[0]' in result.stderr
    path.write_text('version = 1\n[[rule]]\nname = "\\u001b[2J"\naction = "block"\nreason = "\\u001b[1m"\n')
    told = run("explain", path, "--app", "/x")
    assert told.exit_code == 0
    assert told.stdout.startswith('block by rule "\\x1b[2J": \\x1b[1m')
    path.write_text(path.read_text() + '[[test]]\napplication = "/\\u001b[2m"\nexpect = "bypass"\n')
    failed = run("test", path)
    assert "/\\x1b[2m to a host" in failed.stderr
    assert 'got:      block by "\\x1b[2J"' in failed.stderr
    assert "reason:   \\x1b[1m" in failed.stderr


def test_explain_ends_no_line_in_spaces(good: Path) -> None:
    lines = run("explain", good, "--app", "/usr/bin/curl").stdout.splitlines()
    assert [line for line in lines if line != line.rstrip()] == []


INBOUND = """version = 1
[[rule]]
name = "partners"
direction = "inbound"
port = [443]
address = ["192.0.2.0/24"]
action = "bypass"
[[test]]
application = "/usr/sbin/nginx"
direction = "inbound"
address = "198.51.100.1"
expect = "bypass"
rule = "partners"
"""


def test_explain_and_test_ask_about_incoming_connections(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(INBOUND)
    words = ["--app", "/usr/sbin/nginx", "--address", "192.0.2.7"]
    told = [
        json.loads(run("explain", path, *words, *more, "--json").stdout.splitlines()[-1])["rule"]
        for more in ((), ("--direction", "inbound"))
    ]
    assert told == ["defaults", "partners"]
    failed = run("test", path)
    assert failed.exit_code == 1
    assert "/usr/sbin/nginx, port 443, from 198.51.100.1" in failed.stderr


SHOP = """version = 1
[defaults]
inbound = "{action}"
[[inbound]]
name = "shop"
certificate = "shop.pem"
key = "shop.key"
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A policy that decrypts what comes in for one service; its certificate has expired lately."""
    pki = origin_pki("Shop", ("shop.example",), int(time.time()) - 32 * 86_400)
    chain, key = pki.servers["shop.example"]
    (tmp_path / "shop.pem").write_bytes(chain)
    (tmp_path / "shop.key").write_bytes(key)
    (tmp_path / "shop.key").chmod(0o600)
    path = tmp_path / "p.toml"
    path.write_text(SHOP.format(action="decrypt"))
    return path


def test_check_looks_into_the_files_of_a_service(shop: Path) -> None:
    found = run("check", shop)
    assert found.exit_code == 0
    assert found.stderr == '[[inbound]] "shop": its certificate has expired for 2 days\n'
    shop.write_text(SHOP.format(action="bypass"))
    assert "nothing that comes in is decrypted, so it is not used" in run("check", shop).stderr
    (shop.parent / "shop.key").chmod(0o644)
    found = run("check", shop)
    assert found.exit_code == 2
    assert found.stderr.splitlines()[0] == (
        f'{shop}:7: inbound "shop": key: others than its owner have rights in shop.key (mode 0644): chmod 600 shop.key'
    )


def test_explain_says_with_whose_key_what_comes_in_is_decrypted(shop: Path) -> None:
    words = ("explain", shop, "--app", "/usr/sbin/nginx", "--direction", "inbound")
    assert 'with the key of [[inbound]] "shop"' in run(*words, "--host", "shop.example").stdout
    unread = run(*words, "--host", "other.example").stdout
    assert unread.startswith("bypass by [defaults]")
    assert "no [[inbound]] is for other.example on port 443, so it is" in unread


def test_check_compiles_the_rules_of_yara_and_tells_all_that_is_wrong_in_them(tmp_path: Path) -> None:
    """With file and line; what only asks about decisions does not wait for that."""
    policy = tmp_path / "p.toml"
    policy.write_text('version = 1\n[inspector.yara]\nrules = ["@a.yar", "@b.yar"]\n[defaults]\ninspect = ["yara"]\n')
    for name in ("a.yar", "b.yar"):
        (tmp_path / name).write_text("rule x {\n  condition: nowhere\n}\n")
    done = run("check", policy)
    assert done.exit_code == 2
    wrong = "unknown identifier `nowhere`: this identifier has not been declared"
    assert done.stderr.splitlines()[:3] == [f"a.yar:2: {wrong}", f"b.yar:2: {wrong}", "mitmsec: 2 errors in the policy"]
    as_json = [json.loads(line) for line in run("check", "--json", policy).stdout.splitlines()]
    assert [(one["valid"], one["file"], one["line"]) for one in as_json] == [(False, "a.yar", 2), (False, "b.yar", 2)]
    assert run("explain", policy, "--app", "/usr/bin/curl", "--host", "a.test").exit_code == 0


def test_check_tells_what_is_decrypted_and_the_ca_may_not_speak_for(tmp_path: Path) -> None:
    """Of the state's own CA, which anybody may look at; without one there is nothing to tell."""
    file = tmp_path / "p.toml"
    file.write_text(
        'version = 1\n[defaults]\naction = "bypass"\n'
        '[[rule]]\nname = "inspected"\nhost = ["*.corp.example", "www.other.test"]\naction = "decrypt"\n'
    )
    assert "may not speak" not in run("check", file, "--state", tmp_path / "state").stderr
    folder = tmp_path / "state" / "ca"
    folder.mkdir(parents=True, mode=0o700)
    limit = written(["corp.example"], [])
    root, issuing, _ = lasting(succession.prepare(folder), "host", int(time.time()), limit, "correct horse battery")
    succession.complete(folder, [issuing], About(kind=CaKind.OWN), root)
    open_keystore(folder, "host", int(time.time()))
    told = run("check", file, "--state", tmp_path / "state")
    assert told.exit_code == 0
    assert 'rule "inspected" decrypts www.other.test, which the CA may not speak for' in told.stderr
    (warning,) = objects(run("check", file, "--json", "--state", tmp_path / "state"))[0]["warnings"]
    assert "www.other.test" in warning


def test_explain_asks_about_what_first_bytes_show(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    conditions = [
        'protocol = ["ssh"]',
        'alpn = ["h?"]',
        'ja4 = ["t13*"]',
        'protocol = ["tls"]\ndirection = "inbound"',
        "ech = true",
    ]
    rules = "".join(f'[[rule]]\nname = "r{n}"\naction = "block"\n{text}\n' for n, text in enumerate(conditions))
    file.write_text(f"version = 1\n{rules}")
    asked = [
        ["--protocol", "ssh"],
        ["--alpn", "x", "--alpn", "h2"],
        ["--ja4", "t13d"],
        ["--direction", "inbound"],
        ["--ech"],
    ]
    for n, words in enumerate(asked):
        assert run("explain", file, "--app", "/x", *words).stdout.startswith(f'block by rule "r{n}"')
    assert "it is ssh" in run("explain", file, "--app", "/x", "--protocol", "ssh").stdout


def test_check_tells_which_rules_overlap_and_the_policy_is_valid_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    rules = (("low", "1-1023", "bypass"), ("high", "1000-65535", "block"))
    text = "".join(f'[[rule]]\nname = "{n}"\nport = ["{p}"]\naction = "{a}"\n' for n, p, a in rules)
    path.write_text(f'version = 1\n{text}[[rule]]\nname = "rest"\naction = "decrypt"\n')
    result = run("check", path)
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        'rule "rest" can never match: the earlier rules "low" and "high" together take all that it describes',
        'rules "low" and "high" overlap: what both describe is bypass, by the earlier',
    ]
    assert len(objects(run("check", path, "--json"))[0]["warnings"]) == 2
