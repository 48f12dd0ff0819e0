"""What is blocked with `page = true`: programs are told why inside TLS, and the origin never hears of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from client_stage import client
from conftest import BARE, Mitmsec, Network, all_backends

pytestmark = pytest.mark.root

TOLD = '[[rule]]\nname = "no trackers"\nhost = ["tracker.test"]\naction = "block"\npage = true\n'
POLICY = f'[defaults]\naction = "bypass"\n{TOLD}'
OURS, ITS_OWN = "mitmsec issuing", "Test Origins nginx"
LISTENS = """
import socket, sys
listener = socket.create_server((sys.argv[1], 443))
print("listening", flush=True)
while True:
    listener.accept()[0].close()
    print("contact", flush=True)
"""


@contextlib.contextmanager
def contacts(network: Network) -> Iterator[list[str]]:
    """Whoever connects to the blocked host's address; known at the end, our own contact included."""
    said: list[str] = []
    server = network.start(sys.executable, "-c", LISTENS, BARE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "listening\n"
    yield said
    subprocess.run(network.inside("curl", "-sS", "-m", "2", f"https://{BARE}/"), capture_output=True, check=False)
    assert server.stdout.readline() == "contact\n"
    server.terminate()
    said += server.stdout.readlines()


@pytest.mark.joined
@all_backends
def test_a_blocked_host_shows_a_page_and_is_never_contacted(network: Network, mitmsec: Mitmsec) -> None:
    """Over HTTP/1.1, HTTP/2 and in plaintext it is the same; what is sent goes nowhere."""
    asks = "curl -sS -w '%{http_code} %{http_version}\\n'"
    script = (
        f"{asks} --http1.1 https://tracker.test/pixel?who=me; {asks} --http2 -d who=me https://tracker.test/pixel; "
        f"{asks} http://tracker.test/pixel"
    )
    with contacts(network) as after_ours:
        done = mitmsec.run("--policy", mitmsec.policy(POLICY), "--", "sh", "-c", script)
    assert after_ours == []
    seen = mitmsec.of_kind("connection")
    assert done.stdout == "".join(
        "Blocked by mitmsec.\n\nrule:   no trackers\n"
        f'reason: rule "no trackers" takes connections to tracker.test\nid:     {one["id"]}\n{spoken}\n'
        for one, spoken in zip(seen, ("403 1.1", "403 2", "403 1.1"), strict=True)
    ), done.stderr
    assert {(one["action"], one["rule"], one["outcome"]) for one in seen} == {("block", "no trackers", "blocked")}
    assert [one["tls"] and one["tls"]["client"]["version"] for one in seen] == ["TLSv1.3", "TLSv1.3", None]
    assert not any(one["tls"] and one["tls"].get("server") for one in seen)
    requests = mitmsec.of_kind("request")
    assert [(one["method"], one["url"], one["status"]) for one in requests] == [
        ("GET", "https://tracker.test/pixel?who=", 403),
        ("POST", "https://tracker.test/pixel", 403),
    ]
    assert {one["connection"] for one in requests} == {one["id"] for one in seen[:2]}
    assert [(one["names"], one["connection"]) for one in mitmsec.of_kind("certificate")] == [
        (["tracker.test"], seen[0]["id"])
    ]


@pytest.mark.joined
@pytest.mark.parametrize("on_failure", ["open", "closed"])
def test_without_anybody_to_show_it_a_blocked_host_stays_blocked(
    origin: Network, mitmsec: Mitmsec, on_failure: str
) -> None:
    """The worker hangs. What passes, passes."""
    with client(mitmsec, on_failure, rules=f'action = "bypass"\n{TOLD}') as program:
        assert OURS in program.tries("tracker.test")
        assert ITS_OWN in program.tries("bank.test")
        worker = program.pid_of("worker")
        os.kill(worker, signal.SIGSTOP)
        said = [program.tries("tracker.test") for _ in range(2)]  # the first goes to it still
        assert ITS_OWN in program.tries("bank.test")
        with contextlib.suppress(ProcessLookupError):  # ended by then, for it hangs
            os.kill(worker, signal.SIGKILL)
        program.end()
    assert {one.split()[0] for one in said} <= {"TimeoutError", "ConnectionResetError"}, said
    seen = [one for one in mitmsec.of_kind("connection") if one["rule"] == "no trackers"]
    assert {one["action"] for one in seen} == {"block"}
    assert "no_worker" in {one.get("error") for one in seen}
