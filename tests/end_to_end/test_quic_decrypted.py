"""QUIC that is decrypted: HTTP/3 of programs that people use, read and on record as what they say over TCP."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import V4, V6, Mitmsec, Network, by_nftables, here, status_of
from quic_stage import AIOQUIC, CHROMIUM, CURL, H3, TALKER, caddy_origin, h3_origin

pytestmark = [pytest.mark.root, pytest.mark.joined]
needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None or shutil.which("certutil") is None,
    reason="chromium or certutil is missing (Debian packages chromium, libnss3-tools)",
)
DECRYPT = '[defaults]\nquic = "decrypt"\n'


@pytest.fixture
def h3(origin: Network) -> Iterator[H3]:
    with h3_origin(origin) as told:
        yield told


def asks(mitmsec: Mitmsec, policy: str, how: str, *urls: str, **options: Any) -> list[dict[str, Any]]:
    """What curl comes to, in a run under `policy`."""
    done = mitmsec.run("--policy", mitmsec.policy(policy), "--", sys.executable, "-c", CURL, how, *urls, **options)
    assert done.stdout, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def of_quic(mitmsec: Mitmsec) -> list[dict[str, Any]]:
    seen = (event for event in mitmsec.of_kind("connection") if event["protocol"] == "quic")
    return [event for event in seen if event["remote"]["address"] in (V4, V6)]


ANOTHER_HOST = AIOQUIC.replace('host.encode()), (b":path"', 'b"bank.test"), (b":path"')


def test_curl_speaks_http3_which_is_read_and_recorded_but_not_of_who_asks_for_another_host_or_pins(
    h3: H3, mitmsec: Mitmsec, origin: Network
) -> None:
    """One run, one after another. A request for another host is answered 421, and never forwarded. Who trusts its
    origin's own authority, and no other, is refused QUIC from then on.
    """
    python = (sys.executable, "-c")
    commands = (
        (*python, CURL, "V3ONLY", "https://origin.test/hello?token=secret"),
        (*python, ANOTHER_HOST, V4, "origin.test"),
        ("env", f"SSL_CERT_FILE={origin.folder / 'nginx-ca.pem'}", *python, AIOQUIC, V4, "origin.test", "origin.test"),
    )
    script = "\n".join(map(shlex.join, commands))
    done = mitmsec.run("--policy", mitmsec.policy(DECRYPT), "--", "sh", "-c", script)
    told, misdirected, *pinned = map(json.loads, done.stdout.splitlines())
    assert (told["body"], told["version"]) == ("hello over HTTP/3\n", "V3")
    assert misdirected["status"] == "421"
    assert [one["error"] for one in pinned] == ["ConnectionError"] * 2
    assert h3.asked() == [{"host": "origin.test", "path": "/hello?token=secret"}]
    flow, _, rejected, refused = of_quic(mitmsec)  # as they ended
    assert (flow["action"], flow["rule"], flow["outcome"]) == ("decrypt", "defaults", "completed")
    assert (flow["remote"]["host"], flow["bytes"]["received"] > 500) == ("origin.test", True)
    assert (flow["tls"]["client"]["alpn"], flow["tls"]["client"]["version"]) == ("h3", "TLSv1.3")
    assert (flow["tls"]["server"]["verified"], flow["tls"]["server"]["alpn"]) == (True, "h3")
    (request,) = (one for one in mitmsec.of_kind("request") if one["connection"] == flow["id"])
    assert (request["url"], request["method"], request["status"]) == ("https://origin.test/hello?token=", "GET", 200)
    assert request["http_version"] == "HTTP/3"
    assert request["process"]["pid"] == flow["process"]["pid"]
    leaf = mitmsec.of_kind("certificate")[0]
    assert (leaf["names"], leaf["connection"]) == (["origin.test"], flow["id"])
    assert [fault["what"] for fault in mitmsec.of_kind("fault")] == ["misdirected_request"]
    assert (rejected["outcome"], rejected["tls"]["client"]["refusal"]) == ("client_rejected", "alert")
    assert (refused["action"], "client_rejected" in refused["reason"]) == ("block", True)
    here("audit", "verify", "--state", str(mitmsec.state))


def test_megabytes_come_whole_from_an_origin_of_another_make(origin: Network, mitmsec: Mitmsec) -> None:
    with caddy_origin(origin):
        urls = ("https://origin.test/hello", "https://origin.test/megabyte")
        small, large = asks(mitmsec, DECRYPT, "V3ONLY", *urls, timeout_s=110)
    assert small["body"] == "caddy: GET /hello over HTTP/3.0"
    assert large.get("size") == 8 << 20, large
    assert {flow["tls"]["server"]["group"] for flow in of_quic(mitmsec)} == {"X25519MLKEM768"}
    requests = {event["url"]: event for event in mitmsec.of_kind("request")}
    assert requests[urls[1]]["response_bytes"] == 8 << 20
    assert {event["http_version"] for event in requests.values()} == {"HTTP/3"}


def chromium(folder: Path, url: str, *options: str) -> list[str]:
    """A command that prints the page, with a profile of its own."""
    folder.chmod(0o755)
    home = folder / "home"
    home.mkdir()
    (folder / "chromium.sh").write_text(CHROMIUM)
    return ["env", f"HOME={home}", "sh", str(folder / "chromium.sh"), "--dump-dom", *options, url]


@needs_chromium
def test_chromium_speaks_http3_which_is_read_and_recorded(h3: H3, mitmsec: Mitmsec, tmp_path: Path) -> None:
    """Told to: of itself it speaks QUIC only to who has a certificate of a public authority."""
    page = chromium(tmp_path, "https://origin.test/hello", "--origin-to-force-quic-on=origin.test:443")
    done = mitmsec.run("--policy", mitmsec.policy(DECRYPT), "--", *page)
    assert "hello over HTTP/3" in done.stdout, done.stderr
    assert {"host": "origin.test", "path": "/hello"} in h3.asked()
    read = {event["url"]: event["http_version"] for event in mitmsec.of_kind("request")}
    assert read["https://origin.test/hello"] == "HTTP/3"
    assert ("origin.test", "decrypt") in {(flow["remote"]["host"], flow["action"]) for flow in of_quic(mitmsec)}


def test_each_host_has_what_its_rule_says_block_bypass_and_decrypt_beside_each_other_by_ipv6_as_well(
    h3: H3, mitmsec: Mitmsec, origin: Network
) -> None:
    rules = '[[rule]]\nname = "no bank"\nhost = ["bank.test"]\naction = "block"\n'
    rules += '[[rule]]\nname = "unread"\nhost = ["origin.test"]\nport = [443]\nja4 = ["q13d*"]\naction = "bypass"\n'
    hosts = ("bank.test", "origin.test", "six.test")
    with h3_origin(origin, V6):
        told = asks(mitmsec, DECRYPT + rules, "V3ONLY", *(f"https://{host}/hello" for host in hosts))
    refused, passed, read = told
    assert "error" in refused
    assert refused["took_s"] < 2
    assert passed["body"] == read["body"] == "hello over HTTP/3\n"
    flows = sorted((flow["remote"]["host"], flow["action"], flow["rule"]) for flow in of_quic(mitmsec))
    assert flows == [
        ("bank.test", "block", "no bank"),
        ("origin.test", "bypass", "unread"),
        ("six.test", "decrypt", "defaults"),
    ]
    assert [flow["action"] for flow in of_quic(mitmsec) if flow["remote"]["address"] == V6] == ["decrypt"]
    assert [event["url"] for event in mitmsec.of_kind("request")] == ["https://six.test/hello"]


def test_an_origin_whose_certificate_does_not_hold_is_left_to_tcp(origin: Network, mitmsec: Mitmsec) -> None:
    """By UDP it shows one of an unknown authority, by TCP its own."""
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "9",
    ]
    command += ["-subj", "/CN=origin.test", "-addext", "subjectAltName=DNS:origin.test"]
    bad = origin.folder / "bad"
    subprocess.run([*command, "-keyout", f"{bad}.key", "-out", f"{bad}.pem"], check=True, capture_output=True)
    with h3_origin(origin, certificate="bad") as h3:
        url = "https://origin.test/hello"
        only, either = asks(mitmsec, DECRYPT, "V3ONLY", url, "V3", url)
        assert "error" in only
        assert only["took_s"] < 3
        assert (either["body"], either["version"]) == ("hello over HTTP/2.0\n", "V2_0")
        assert h3.asked() == []
    first = of_quic(mitmsec)[0]
    assert (first["action"], first["outcome"]) == ("decrypt", "origin_certificate")
    assert (first["tls"]["server"]["verified"], first["tls"]["server"]["error"]) == (False, first["error"])
    assert {event["http_version"] for event in mitmsec.of_kind("request")} == {"HTTP/2"}


def test_what_inspectors_find_in_http3_is_on_record_and_stops_it(h3: H3, mitmsec: Mitmsec) -> None:
    rule = '[[rule]]\nname = "no greetings"\nhost = ["origin.test"]\naction = "decrypt"\ninspect = ["keywords"]\n'
    rule += 'on_finding = "block"\n[inspector.keywords]\nwords = ["hello over"]\n'
    (told,) = asks(mitmsec, DECRYPT + rule, "V3ONLY", "https://origin.test/greet")
    assert "hello" not in told.get("body", "")
    (finding,) = mitmsec.of_kind("finding")
    assert (finding["detector"], finding["verdict"]) == ("keywords", "block")
    (flow,) = of_quic(mitmsec)
    assert (flow["action"], flow["outcome"]) == ("decrypt", "completed"), "its other streams might go on"
    assert [request["outcome"] for request in mitmsec.of_kind("request")] == ["blocked"]


@by_nftables
def test_where_quic_is_not_led_to_the_gate_it_is_refused(h3: H3, mitmsec: Mitmsec) -> None:
    url = "https://origin.test/hello"
    only, either = asks(mitmsec, DECRYPT, "V3ONLY", url, "V3", url)
    assert "error" in only
    assert either["version"] == "V2_0"
    assert h3.asked() == []


class Talker:
    """A program that keeps its connection, and asks when it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert self.said() == "up"

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def asks(self, how: str = "again") -> str:
        """The status of the answer, or the error."""
        assert self.process.stdin is not None
        self.process.stdin.write(how + "\n")
        self.process.stdin.flush()
        return self.said()

    def leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


@pytest.fixture
def talker(h3: H3, mitmsec: Mitmsec) -> Iterator[Talker]:
    command = [sys.executable, "-c", TALKER, V4, "origin.test"]
    process = mitmsec.start("--policy", mitmsec.policy(DECRYPT), "--", *command, stdin=subprocess.PIPE)
    made = Talker(process)
    yield made
    if process.poll() is None:
        made.leave()


def worker_of(mitmsec: Mitmsec) -> int:
    return next(pid for name, pid, _ in status_of(mitmsec).processes if name == "worker")


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_worker_that_is_killed_ends_its_flows_and_others_go_to_the_next(talker: Talker, mitmsec: Mitmsec) -> None:
    assert talker.asks() == "200"
    assert talker.asks() == "200"
    victim = worker_of(mitmsec)
    os.kill(victim, signal.SIGKILL)
    until(lambda: bool(of_quic(mitmsec)))
    (flow,) = of_quic(mitmsec)
    assert (flow["action"], flow["outcome"], flow["error"]) == ("decrypt", "fault", "worker_died")
    until(lambda: any(name == "worker" and pid != victim for name, pid, _ in status_of(mitmsec).processes))
    until(lambda: talker.asks("new") == "200")  # refused until the next one is ready
    talker.leave()
    assert of_quic(mitmsec)[-1]["outcome"] == "completed"
    assert len(mitmsec.of_kind("request")) == 3
    here("audit", "verify", "--state", str(mitmsec.state))


def test_switched_off_what_is_decrypted_ends_and_what_comes_passes_unread(talker: Talker, mitmsec: Mitmsec) -> None:
    assert talker.asks() == "200"
    here("off", "--state", str(mitmsec.state))
    until(lambda: bool(of_quic(mitmsec)))
    assert of_quic(mitmsec)[0]["error"] == "switched off"
    while (said := talker.asks()) != "200":  # by another connection
        assert said == "ConnectionError"  # for the first one was closed, and not only silent
    here("on", "--state", str(mitmsec.state))
    assert talker.asks("new") == "200"
    talker.leave()
    flows = sorted((flow["action"], flow["outcome"]) for flow in of_quic(mitmsec))
    assert flows == [("bypass", "completed"), ("decrypt", "completed"), ("decrypt", "cut")]
    assert len(mitmsec.of_kind("request")) == 2
