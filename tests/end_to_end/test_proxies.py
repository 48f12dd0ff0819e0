"""Programs that go through a proxy, HTTP's or SOCKS: what they say in the tunnel is decided by its own name."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import V4, Mitmsec, Network, _until_listening

pytestmark = [pytest.mark.root, pytest.mark.joined]
HTTP_PORT, SOCKS_PORT, LOCKED_PORT = 3128, 1080, 1081
TINYPROXY = "Port {port}\nListen {address}\nMaxClients 20\nConnectPort 443\nConnectPort 80\nLogLevel Critical\n{more}"
BASIC = "BasicAuth joe secret\n"
BY_NAME = """
[defaults]
inspect = ["keywords"]
[inspector.keywords]
words = ["hello over"]
[[rule]]
name = "private"
host = ["bank.test"]
action = "bypass"
"""
CURLS = {
    "connect": f"--proxy http://{V4}:{HTTP_PORT} https://origin.test/hello",
    "connect, asked for a password": f"--proxy http://{V4}:{HTTP_PORT + 1} --proxy-anyauth --proxy-user joe:secret "
    "https://origin.test/hello",
    "connect, to an address": f"--proxy http://{V4}:{HTTP_PORT} https://{V4}/hello",
    "connect, http": f"--proxytunnel --proxy http://{V4}:{HTTP_PORT} http://origin.test/hello",
    "socks": f"--socks5-hostname {V4}:{SOCKS_PORT} https://origin.test/hello",
    "socks, with a password": f"--socks5 {V4}:{LOCKED_PORT} --proxy-user joe:secret https://origin.test/hello",
    "socks, http": f"--socks5-hostname {V4}:{SOCKS_PORT} http://origin.test/hello",
    "private, connect": f"--proxy http://{V4}:{HTTP_PORT} https://bank.test/hello",
    "private, socks": f"--socks5-hostname {V4}:{SOCKS_PORT} https://bank.test/hello",
}  # fmt: skip


@pytest.fixture
def proxies(origin: Network) -> Iterator[Network]:
    missing = [name for name in ("tinyproxy", "microsocks") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)}")
    commands = []
    for port, more in ((HTTP_PORT, ""), (HTTP_PORT + 1, BASIC)):
        config = origin.folder / f"tinyproxy-{port}.conf"
        config.write_text(TINYPROXY.format(port=port, address=V4, more=more))
        commands.append(["tinyproxy", "-d", "-c", str(config)])
    commands.append(["microsocks", "-i", V4, "-p", str(SOCKS_PORT)])
    commands.append(["microsocks", "-i", V4, "-p", str(LOCKED_PORT), "-u", "joe", "-P", "secret"])
    running = [origin.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for command in commands]
    try:
        for port in (HTTP_PORT, HTTP_PORT + 1, SOCKS_PORT, LOCKED_PORT):
            _until_listening(origin, V4, port)
        yield origin
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_what_is_said_through_a_proxy_is_decrypted_or_let_pass_by_its_own_name(
    proxies: Network, mitmsec: Mitmsec
) -> None:
    """One run for all; each curl prints who it is, what came, and who signed what it was shown."""
    shown = "-sS -m 20 -w '|%{certs}' "
    lines = [f"echo {shlex.quote(name)}; curl {shown} {words}; echo '#'" for name, words in CURLS.items()]
    done = mitmsec.run("--policy", mitmsec.policy(BY_NAME), "--", "sh", "-c", "\n".join(lines))
    came_to = dict(one.strip().split("\n", 1) for one in done.stdout.split("#") if one.strip())
    assert came_to.keys() == CURLS.keys(), done.stderr
    for name, said in came_to.items():
        assert said.startswith("hello over"), (name, said, done.stderr)
        ours = "mitmsec issuing" in said
        assert ours == (not name.startswith("private") and not name.endswith("http")), (name, said)
    connections = mitmsec.of_kind("connection")
    (refused,) = [one for one in connections if one["action"] == "capture"]  # 407, and another connection
    assert (refused["protocol"], refused["outcome"]) == ("http-proxy", "completed")
    connections.remove(refused)
    assert len(connections) == len(CURLS)
    for name, one in zip(CURLS, sorted(connections, key=lambda event: str(event["time"])), strict=True):
        _is_on_record(name, one)
    urls = {one["url"] for one in mitmsec.of_kind("request")}
    assert urls == {"https://origin.test/hello", "http://origin.test/hello", f"https://{V4}/hello"}
    read = {one["connection"] for one in mitmsec.of_kind("finding")}
    assert read == {one["id"] for one in connections if one["action"] == "decrypt"}
    assert [one["what"] for one in mitmsec.of_kind("fault")] == []
    names = sorted({tuple(one["names"]) for one in mitmsec.of_kind("certificate")})
    assert names == [(V4,), ("origin.test",)]


def _is_on_record(name: str, one: dict[str, Any]) -> None:
    assert one["action"] == ("bypass" if name.startswith("private") else "decrypt"), (name, one)
    if name == "private, connect":  # the proxy hears the name: it was decided by that
        assert (one["protocol"], one["remote"]["host"]) == ("http-proxy", "bank.test"), one
        return
    assert one["through"] == ("socks" if "socks" in name else "http-proxy"), (name, one)
    assert one["protocol"] == ("http" if name.endswith("http") else "tls"), (name, one)
    assert (one["outcome"], one["remote"]["address"]) == ("completed", V4), (name, one)
    assert one["remote"]["port"] in (HTTP_PORT, HTTP_PORT + 1, SOCKS_PORT, LOCKED_PORT)
    if one["protocol"] == "tls" and one["action"] == "decrypt":
        assert one["tls"]["server"]["verified"] is True, (name, one)
