"""What single conditions accept, and when one accepts all that another does."""

from __future__ import annotations

import ipaddress
from itertools import product
from typing import Any

import msgspec
import policies
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.model import Confidence, Fact, ParentProcess, Process
from mitmsec.core.rules import Application
from mitmsec.core.selector import (
    Program,
    container_matches,
    host_covers,
    host_patterns,
    is_path,
    lineage,
    merged,
    networks,
    networks_accept,
    networks_cover,
    parse_address,
    path_covers,
    path_matches,
    ports_accept,
    ports_cover,
    text_matches,
)


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("/usr/bin/curl", "/usr/bin/curl", True),
        ("/usr/bin/curl", "/usr/bin/CURL", False),
        ("/usr/bin/curl", "/usr/bin/curl2", False),
        ("/usr/lib/firefox/*", "/usr/lib/firefox/plugins/x", True),
        ("*/curl", "/usr/bin/curl", True),
        ("/usr/bin/pytho?", "/usr/bin/python", True),
        ("/usr/bin/pytho?", "/usr/bin/python3", False),
        ("/a/**/b", "/a/x/y/b", True),
        ("/a[b]/c.d", "/a[b]/c.d", True),
        ("/a[b]/c.d", "/ab/cxd", False),
        ("/a\nb/*", "/a\nb/c\nd", True),
        ("C:\\Program Files\\*\\chrome.exe", "c:/program files/Google/Chrome/Chrome.EXE", True),
        ("c:/tools/*", "C:\\Tools\\x.exe", True),
    ],
)
def test_path_globs(glob: str, path: str, matches: bool) -> None:
    assert path_matches(glob, path) is matches


def test_what_is_a_path_glob_and_what_is_a_name() -> None:
    assert [is_path(text) for text in ("/x", "a\\b", "*", "cur?", "browsers", "")] == [True] * 4 + [False] * 2


globs = st.text("/a*?", min_size=1, max_size=5)
paths = ["".join(chars) for size in range(4) for chars in product("/a", repeat=size)]


@given(globs, globs)
def test_a_glob_that_covers_another_matches_all_that_the_other_does(wide: str, narrow: str) -> None:
    if path_covers(wide, narrow):
        assert all(path_matches(wide, path) for path in paths if path_matches(narrow, path))


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        ("/a/*", "/a/b*", True),
        ("/a/*", "/a/?", True),
        ("/a/?", "/a/*", False),
        ("/a/b", "/a/b", True),
        ("*", "/x", True),
    ],
)
def test_globs_covering_globs(wide: str, narrow: str, covers: bool) -> None:
    assert path_covers(wide, narrow) is covers


@pytest.mark.parametrize(
    ("application", "accepted"),
    [
        (Application(name="x", path=("/usr/lib/firefox/*",)), [policies.FIREFOX]),
        (Application(name="x", path=("/usr/lib/firefox/*",), children=True), [policies.FIREFOX, policies.HELPER]),
        (Application(name="x", process_name=("cur*",)), [policies.CURL]),
        (Application(name="x", user=("joe", "root")), [policies.FIREFOX, policies.CURL]),
        (Application(name="x", sha256=("ab" * 32,)), [policies.FIREFOX]),
        (Application(name="x", path=("/usr/*",), user=("root",)), [policies.CURL]),
        (Application(name="x", path=("*",)), [policies.FIREFOX, policies.CURL, policies.HELPER]),
    ],
)
def test_programs(application: Application, accepted: list[Process]) -> None:
    program = Program(application)
    assert [process for process in policies.PROCESSES if program.accepts(process)] == accepted


READ = Process(pid=1, exe="/bin/x", name="x", user="joe", sha256="cd" * 32, confidence=Confidence.KERNEL)
UNREAD_PATH = msgspec.structs.replace(READ, exe=None, confidence=Confidence.INFERRED)


@pytest.mark.parametrize(
    ("application", "process", "can_judge"),
    [
        (Application(name="x", path=("/a",)), READ, True),
        (Application(name="x", path=("/a",)), UNREAD_PATH, False),
        (Application(name="x", user=("joe",)), UNREAD_PATH, True),  # it is not asked for the path
        (Application(name="x", user=("ann",), path=("/a",)), UNREAD_PATH, True),  # it is not hers, whatever its path
        (Application(name="x", user=("joe",), path=("/a",)), UNREAD_PATH, False),
        (Application(name="x", user=("1001",)), msgspec.structs.replace(READ, user=None, uid=1001), True),
        (Application(name="x", user=("joe",)), msgspec.structs.replace(READ, user=None), False),
        (Application(name="x", process_name=("y",)), msgspec.structs.replace(READ, name=None), False),
        (Application(name="x", sha256=("ab" * 32,)), msgspec.structs.replace(READ, sha256=None), False),
        (Application(name="x", path=("/a",), children=True), READ, True),  # it was read, and has no parent
        (Application(name="x", path=("/bin/x",), children=True), UNREAD_PATH, False),
        (
            Application(name="x", path=("/a",), children=True),
            msgspec.structs.replace(READ, parent=ParentProcess(pid=2)),
            False,
        ),
        (
            Application(name="x", path=("/a",), children=True),
            msgspec.structs.replace(UNREAD_PATH, parent=ParentProcess(pid=2, exe="/a")),
            True,  # its parent is enough
        ),
    ],
)
def test_what_can_be_judged_of_a_program_that_was_not_read_in_full(
    application: Application, process: Process, can_judge: bool
) -> None:
    assert Program(application).can_judge(process) is can_judge


ID = "0123456789ab" + "cd" * 26


@pytest.mark.parametrize(
    ("wanted", "container", "matches"),
    [
        (ID, f"docker:{ID}", True),
        (ID[:12], f"docker:{ID}", True),
        (ID[1:13], f"docker:{ID}", False),
        (f"docker:{ID[:12]}", f"docker:{ID}", True),
        (f"podman:{ID[:12]}", f"docker:{ID}", False),
        (ID[:12], f"user@1000.service/docker:{ID}", False),  # any user can make this one
        (f"docker:{ID[:12]}", f"user@1000.service/docker:{ID}", False),
        (f"user@1000.service/docker:{ID}", f"user@1000.service/docker:{ID}", True),
        ("docker:*", f"docker:{ID}", True),
        ("docker:*", f"user@1000.service/docker:{ID}", False),
        ("*docker:0123*", f"user@1000.service/docker:{ID}", True),
        ("lxc:web", "lxc:web", True),
        ("lxc:web", "lxc:Web", False),
        ("lxc:feedfeedfeed", "lxc:feedfeedfeed", True),
        ("lxc:feedfeedfeed", "lxc:feedfeedfeed2", False),  # a name, not the first digits of one
        (ID[:12], f"lxc:{ID}", False),
    ],
)
def test_containers(wanted: str, container: str, matches: bool) -> None:
    assert container_matches(wanted, container) is matches


@pytest.mark.parametrize(
    ("glob", "text", "matches"),
    [
        ("nginx.service", "nginx.service", True),
        ("nginx.service", "user@1000.service/nginx.service", False),
        ("php*.service", "php8.2-fpm.service", True),
        ("user@*.service/app-?.scope", "user@1000.service/app-a.scope", True),
        (r"a\x2db.service", r"a\x2db.service", True),
        (r"a\x2db.service", r"A\X2DB.service", False),  # a backslash does not make it a path of Windows
        (r"a\x2db.service", "a/x2db.service", False),
        ("a:b", "A:b", False),
    ],
)
def test_units(glob: str, text: str, matches: bool) -> None:
    assert text_matches(glob, text) is matches


def test_the_pids_of_a_process_and_its_parents() -> None:
    assert lineage(READ) == (1,)
    assert lineage(GRANDCHILD) == (9, 8, 7)


HOST = msgspec.structs.replace(READ, services=("Dnscache", "lmhosts"), signer='CN="A, Corporation", O=B, C=US')
GRANDCHILD = Process(pid=9, exe="/x", parent=ParentProcess(pid=8, parent=ParentProcess(pid=7)))


@pytest.mark.parametrize(
    ("criteria", "process", "answer"),
    [
        ({"service": ("*.service",)}, msgspec.structs.replace(READ, unit="a.service"), True),
        ({"service": ("*.service",)}, msgspec.structs.replace(READ, unit="a.scope"), False),
        ({"service": ("*",)}, READ, False),  # it was read, and is in no unit
        ({"service": ("*",)}, msgspec.structs.replace(READ, confidence=Confidence.TABLE), False),
        ({"service": ("*",)}, UNREAD_PATH, None),
        ({"service": ("*",)}, msgspec.structs.replace(UNREAD_PATH, container="lxc:a"), False),
        ({"container": ("*",)}, READ, False),
        ({"container": ("*",)}, UNREAD_PATH, None),
        ({"container": ("*",)}, msgspec.structs.replace(UNREAD_PATH, unit="a.service"), False),
        ({"container": ("*",)}, msgspec.structs.replace(UNREAD_PATH, container="lxc:a"), True),
        ({"service": ("windows:dns*",)}, HOST, True),  # in any case
        ({"service": ("windows:dns",)}, HOST, False),
        ({"service": ("*",)}, HOST, False),  # it is in no unit
        ({"service": ("*.service", "windows:LMHOSTS")}, HOST, True),
        ({"service": ("*.service", "windows:x")}, msgspec.structs.replace(READ, unit="a.service"), True),
        ({"service": ("windows:*",)}, READ, False),  # Windows' alone has any
        ({"service": ("windows:*",)}, UNREAD_PATH, False),
        ({"service": ("windows:*",)}, msgspec.structs.replace(READ, unread=(Fact.SERVICES,)), None),
        ({"service": ("*.service", "windows:*")}, UNREAD_PATH, None),
        ({"signer": ("A, Corporation",)}, HOST, True),
        ({"signer": ("A*", "?")}, HOST, True),
        ({"signer": ("a, corporation", "Corporation", "B")}, HOST, False),
        ({"signer": ('CN="A, Corporation", *, C=US',)}, HOST, True),
        ({"signer": ("CN=A, Corporation", "*O=A*")}, HOST, False),
        ({"signer": ("*",)}, READ, False),  # it was read, and nobody has signed it; or it runs on Linux
        ({"signer": ("*",)}, msgspec.structs.replace(READ, unread=(Fact.SIGNER,)), None),
        ({"signer": ("*",)}, msgspec.structs.replace(READ, signer="no subject"), False),
        ({"pid": (1, 2)}, UNREAD_PATH, True),
        ({"pid": (2,)}, UNREAD_PATH, False),
        ({"pid": (7,)}, GRANDCHILD, False),
        ({"pid": (7,), "children": True}, GRANDCHILD, True),
        ({"pid": (9,), "children": True}, GRANDCHILD, True),
        ({"pid": (6,), "children": True}, GRANDCHILD, False),
        ({"pid": (6,), "children": True}, READ, False),  # it was read, and has no parent
        ({"pid": (6,), "children": True}, UNREAD_PATH, None),
        ({"pid": (6,)}, Process(pid=0), None),
        ({"pid": (6,), "children": True}, Process(pid=5, parent=ParentProcess(pid=0)), None),
    ],
)
def test_what_is_known_of_units_services_signers_containers_and_pids(
    criteria: dict[str, Any], process: Process, answer: bool | None
) -> None:
    program = Program(Application(name="x", **criteria))
    assert [told for _, told in program.answers(process)] == [answer]
    assert program.accepts(process) is (answer is True)
    assert program.can_judge(process) is (answer is not None)


def test_an_entry_of_a_rule_is_a_path_or_a_known_name() -> None:
    assert Program.of("*/curl", ()).accepts(policies.CURL)
    assert Program.of("root's", policies.APPLICATIONS).accepts(policies.CURL)
    with pytest.raises(KeyError):
        Program.of("nobody", policies.APPLICATIONS)


def test_the_patterns_that_accept_a_name() -> None:
    assert host_patterns("b.a.example") == (
        "b.a.example",
        "*.a.example",
        "*.example",
    )


@given(st.lists(policies.patterns, min_size=1, max_size=3), policies.patterns)
def test_patterns_that_cover_another_accept_every_name_that_it_does(wide: list[str], narrow: str) -> None:
    known = {*policies.NAMES, *(f"x.{name}" for name in policies.NAMES)}
    left_over = {name for name in known if narrow in host_patterns(name) and set(host_patterns(name)).isdisjoint(wide)}
    assert not (host_covers(wide, narrow) and left_over)


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        (["a.example"], "a.example", True),
        (["*.example"], "a.example", True),
        (["*.example"], "*.a.example", True),
        (["*.example"], "*.example", True),
        (["*.example"], "example", False),
        (["example"], "*.example", False),
        (["*.a.example"], "*.example", False),
        (["*.a.example"], "*.b.a.example", True),
    ],
)
def test_hosts_covering_hosts(wide: list[str], narrow: str, covers: bool) -> None:
    assert host_covers(wide, narrow) is covers


def test_ports() -> None:
    ranges = merged([(90, 99), (80, 80), (81, 85), (84, 86)])
    assert ranges == ((80, 86), (90, 99))
    assert [ports_accept(ranges, port) for port in (79, 80, 86, 87, 99, 100)] == [False, True, True, False, True, False]
    assert ports_cover(ranges, ((82, 86), (95, 95)))
    assert not ports_cover(ranges, ((85, 91),))


def test_addresses() -> None:
    within = networks(["10.0.0.0/9", "10.128.0.0/9", "2001:db8::/32"])
    assert within == (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32"))
    accepted = [
        networks_accept(within, parse_address(text)) for text in ("10.1.2.3", "11.0.0.0", "2001:db8::1", "", "x")
    ]
    assert accepted == [True, False, True, False, False]
    assert networks_cover(within, networks(["10.2.0.0/16", "2001:db8:1::/48"]))
    assert not networks_cover(within, networks(["0.0.0.0/0"]))
    assert not networks_cover(within, networks(["::a00:0/128"]))


def test_a_path_that_is_only_claimed_is_never_matched_and_that_is_known() -> None:
    """A mount namespace can show any program under any name."""
    faker = Process(pid=1, claimed_exe="/usr/bin/curl", confidence=Confidence.KERNEL)
    curl = Program(Application(name="curl", path=("/usr/bin/*",), children=True))
    assert not curl.accepts(faker)
    child = Process(pid=2, exe="/opt/x", parent=ParentProcess(pid=1, claimed_exe="/usr/bin/curl"))
    assert not curl.accepts(child)
    assert curl.can_judge(child)
