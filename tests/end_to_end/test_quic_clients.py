"""QUIC of programs that people use: refused they fall back to TCP, bypassed they speak HTTP/3."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import V4, V6, Mitmsec, Network
from quic_stage import AIOQUIC, CHROMIUM, CURL, H3, h3_origin

pytestmark = [pytest.mark.root, pytest.mark.joined]
needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None or shutil.which("certutil") is None,
    reason="chromium or certutil is missing (Debian packages chromium, libnss3-tools)",
)
REFUSE, BYPASS = '[defaults]\nquic = "refuse"\n', '[defaults]\nquic = "bypass"\n'


@pytest.fixture
def h3(origin: Network) -> Iterator[H3]:
    with h3_origin(origin) as told:
        yield told


def chromium(folder: Path, url: str, *options: str) -> list[str]:
    """A command that prints the page, with a profile of its own."""
    folder.chmod(0o755)
    home = folder / "home"
    home.mkdir()
    (folder / "chromium.sh").write_text(CHROMIUM)
    return ["env", f"HOME={home}", "sh", str(folder / "chromium.sh"), "--dump-dom", *options, url]


def of_quic(mitmsec: Mitmsec) -> list[dict[str, Any]]:
    """What is on record of QUIC with the origin. Chromium also connects a socket to see whether IPv6 is routed."""
    seen = (event for event in mitmsec.of_kind("connection") if event["protocol"] == "quic")
    return [event for event in seen if event["remote"]["address"] == V4]


@needs_chromium
def test_chromium_that_is_refused_quic_loads_the_page_over_tcp_and_that_is_read(
    h3: H3, mitmsec: Mitmsec, tmp_path: Path
) -> None:
    """The first answer says Alt-Svc: h3, but not to Chromium: what it asks for next it does not even try over QUIC."""
    asked = chromium(tmp_path, "https://origin.test/advertised")
    done = mitmsec.run("--policy", mitmsec.policy(REFUSE), "--", *asked)
    assert "hello over HTTP/2.0" in done.stdout, done.stderr
    assert h3.asked() == []
    assert of_quic(mitmsec) == []
    read = {event["url"]: event["http_version"] for event in mitmsec.of_kind("request")}
    assert read["https://origin.test/advertised"] == read["https://origin.test/missing"] == "HTTP/2"


@needs_chromium
def test_chromium_that_is_let_pass_speaks_http3_unread(h3: H3, mitmsec: Mitmsec, tmp_path: Path) -> None:
    """Told to: of itself it speaks QUIC only to who has a certificate of a public authority."""
    asked = chromium(tmp_path, "https://origin.test/hello", "--origin-to-force-quic-on=origin.test:443")
    done = mitmsec.run("--policy", mitmsec.policy(BYPASS), "--", *asked)
    assert "hello over HTTP/3" in done.stdout, done.stderr
    assert {"host": "origin.test", "path": "/hello"} in h3.asked()
    (told,) = {(flow["remote"]["host"], flow["action"], flow["rule"]) for flow in of_quic(mitmsec)}
    assert told == ("origin.test", "bypass", "defaults")
    assert mitmsec.of_kind("request") == []


def test_curl_that_is_refused_quic_falls_back_at_once_or_fails_at_once(h3: H3, mitmsec: Mitmsec) -> None:
    url = "https://origin.test/hello"
    asked = (sys.executable, "-c", CURL, "V3", url, "V3ONLY", url)
    done = mitmsec.run("--policy", mitmsec.policy(REFUSE), "--", *asked)
    told, only = map(json.loads, done.stdout.splitlines())
    assert (told["body"], told["version"]) == ("hello over HTTP/2.0\n", "V2_0")
    assert "error" in only
    assert only["took_s"] < 2
    assert h3.asked() == []


NO_BANK = BYPASS + '[[rule]]\nname = "no bank"\nhost = ["bank.test"]\naction = "block"\n'


def test_a_rule_about_a_host_refuses_its_quic_and_others_pass_unread(h3: H3, mitmsec: Mitmsec) -> None:
    """Both hosts have one address; the origin hears nothing of the one that is refused.

    aioquic sends by name, and does not look at what sendto() says; what QUIC says, it hears.
    """
    urls = ("https://bank.test/hello", "https://origin.test/hello", "https://origin.test/megabyte")
    by_curl = (sys.executable, "-c", CURL, "V3ONLY", *urls)
    by_aioquic = (sys.executable, "-c", AIOQUIC, V4, "bank.test", "origin.test")
    script = f"{shlex.join(by_curl)}\n{shlex.join(by_aioquic)}"
    done = mitmsec.run("--policy", mitmsec.policy(NO_BANK), "--", "sh", "-c", script)
    refused, passed, large, told, let_pass = map(json.loads, done.stdout.splitlines())
    assert "error" in refused
    assert refused["took_s"] < 2
    assert passed["body"] == "hello over HTTP/3\n"
    assert (large["size"], large["version"]) == (1 << 20, "V3"), large
    assert told["error"] == "ConnectionError"
    assert told["took_s"] < 2
    assert let_pass["status"] == "200"
    assert h3.asked() == [{"host": "origin.test", "path": path} for path in ("/hello", "/megabyte", "/")]
    flows = of_quic(mitmsec)
    assert {(flow["remote"]["host"], flow["action"], flow["rule"], flow["outcome"]) for flow in flows} == {
        ("bank.test", "block", "no bank", "blocked"),
        ("origin.test", "bypass", "defaults", "completed"),
    }
    for flow in flows:
        if flow["action"] == "block":
            assert flow["bytes"] == {"sent": 0, "received": 0}
        else:
            assert flow["bytes"]["received"] > 1000
            assert flow["tls"]["client"]["ja4"].startswith("q13d")
    assert mitmsec.of_kind("request") == []


NO_QUIC = (
    BYPASS + '[[rule]]\nname = "but here"\nhost = ["origin.test"]\nprotocol = ["quic"]\naction = "bypass"\n'
    '[[rule]]\nname = "no quic"\nprotocol = ["quic"]\naction = "block"\n'
)


def test_a_rule_about_quic_refuses_it_and_leaves_tcp_alone(h3: H3, mitmsec: Mitmsec) -> None:
    """Who is refused falls back, and is read."""
    urls = ("https://bank.test/hello", "https://origin.test/hello")
    command = [sys.executable, "-c", CURL, "V3", *urls]
    done = mitmsec.run("--policy", mitmsec.policy(NO_QUIC), "--", *command)
    said = [(told["body"], told["version"]) for told in map(json.loads, done.stdout.splitlines())]
    assert said == [("hello over HTTP/2.0\n", "V2_0"), ("hello over HTTP/3\n", "V3")]
    assert h3.asked() == [{"host": "origin.test", "path": "/hello"}]
    assert {(flow["remote"]["host"], flow["action"], flow["rule"]) for flow in of_quic(mitmsec)} == {
        ("bank.test", "block", "no quic"),
        ("origin.test", "bypass", "but here"),
    }
    assert [event["url"] for event in mitmsec.of_kind("request")] == ["https://bank.test/hello"]


@needs_chromium
def test_chromium_that_a_rule_refuses_quic_is_refused_over_tcp_too(h3: H3, mitmsec: Mitmsec, tmp_path: Path) -> None:
    asked = chromium(tmp_path, "https://bank.test/hello", "--origin-to-force-quic-on=bank.test:443")
    done = mitmsec.run("--policy", mitmsec.policy(NO_BANK), "--", *asked)
    assert "hello over" not in done.stdout
    assert h3.asked() == []
    assert {(flow["remote"]["host"], flow["action"]) for flow in of_quic(mitmsec)} == {("bank.test", "block")}


def test_over_ipv6_it_is_the_same(origin: Network, mitmsec: Mitmsec) -> None:
    policy = mitmsec.policy(BYPASS + '[[rule]]\nname = "not six"\nhost = ["six.test"]\naction = "block"\n')
    with h3_origin(origin, V6) as h3:
        asked = (sys.executable, "-c", AIOQUIC, V6, "six.test", "origin.test")
        refused, passed = map(json.loads, mitmsec.run("--policy", policy, "--", *asked).stdout.splitlines())
        assert "error" in refused
        assert passed["status"] == "200"
        assert len(h3.asked()) == 1
    flows = [event for event in mitmsec.of_kind("connection") if event["protocol"] == "quic"]
    seen = [(flow["remote"]["address"], flow["remote"]["host"], flow["action"]) for flow in flows]
    assert seen == [(V6, "six.test", "block"), (V6, "origin.test", "bypass")]
