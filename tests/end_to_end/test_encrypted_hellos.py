"""Encrypted hellos (ECH) and what invites to them: a real client, a real origin, a real resolver's client."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ech_stage
import pytest
from conftest import BARE, RESOLVER, Mitmsec, Network
from ech_stage import BROWSER, HIDDEN, OFFERED, PORT, PUBLIC, PYTHON

pytestmark = [pytest.mark.root, pytest.mark.joined]


@pytest.fixture(scope="module")
def hidden(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """HIDDEN and its origin; what proves it, and the `ech` of its HTTPS record as it is written in a zone."""
    folder = tmp_path_factory.mktemp("hidden")
    folder.chmod(0o755)
    with ech_stage.hidden_origin(network, folder) as configurations:
        ech = base64.b64encode(configurations).decode()
        zone = f'{HIDDEN}. HTTPS 1 . alpn="h3,h2" ech="{ech}"\n{HIDDEN}. A {BARE}\n{PUBLIC}. A {BARE}'
        with ech_stage.name_server(network, zone):
            yield folder / "root.pem", ech


@pytest.fixture
def offer(hidden: tuple[Path, str], resolver_conf: None) -> str:
    """HIDDEN and its origin, in the network's names too."""
    return hidden[1]


@pytest.fixture
def roots(hidden: tuple[Path, str], offer: str) -> Path:
    """What proves the origin that is offered."""
    return hidden[0]


def each(*overs: str) -> tuple[str, ...]:
    """What follows as a command, with each of these as its last word."""
    return ("sh", "-c", f'for over in {" ".join(overs)}; do "$@" "$over"; done', "sh")


def record(ech: str = "") -> str:
    """As it is told without HTTP/3."""
    return '1 . alpn="\\010\\010,h2"' + (f' ech="{ech}"' if ech else "")


@contextmanager
def service(mitmsec: Mitmsec, python: Path, defaults: str) -> Iterator[Callable[[str], None]]:
    """That selects this program; what begins a reload, to other defaults."""
    state = ("--state", str(mitmsec.state))

    def order(*words: str, defaults: str) -> None:
        text = f'[defaults]\n{defaults}\n[[application]]\nname = "ours"\npath = ["{python}"]\n'
        command = mitmsec.command(*words, *state, "--policy", mitmsec.policy(text))
        subprocess.run(command, check=True, capture_output=True, env=mitmsec.environment(), timeout=90)

    order("start", "--workers", "1", defaults=defaults)
    try:
        yield lambda defaults: order("reload", defaults=defaults)
    finally:
        subprocess.run(mitmsec.command("stop", *state), check=False, capture_output=True, timeout=90)
        deadline = time.monotonic() + 20
        while (mitmsec.state / "run" / "control.sock").exists() and time.monotonic() < deadline:
            time.sleep(0.05)


@pytest.fixture
def selected(tmp_path: Path) -> Path:
    """A Python of its own."""
    python = tmp_path / "selected-python"
    shutil.copy(os.path.realpath(sys.executable), python)
    return python


@pytest.fixture
def offered(network: Network) -> Callable[..., str]:
    """What the name server offers this program."""

    def asked(program: str | Path, over: str, *more: str) -> str:
        command = network.inside(str(program), "-c", OFFERED, RESOLVER, HIDDEN, over, *more)
        home = {"PYTHONHOME": sys.base_prefix, "PYTHONPATH": sysconfig.get_path("purelib")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=os.environ | home)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return asked


# --- what DNS answers offer -------------------------------------------------------------------------------------------
@pytest.mark.joined(False)
def test_under_the_service_answers_offer_selected_programs_no_more_than_the_policy_says(
    offer: str, mitmsec: Mitmsec, selected: Path, offered: Callable[..., str]
) -> None:
    """Over UDP and TCP; but to one that asks for signatures, for it would find them broken. A reload changes it."""
    as_it_is = f'1 . alpn="h3,h2" ech="{offer}"'
    with service(mitmsec, selected, 'dns_ech = "strip"') as reload:
        assert offered(sys.executable, "udp") == as_it_is
        for over in ("udp", "tcp"):
            before, _, key = offered(selected, over).partition(" key65534=")
            assert before == record()
            assert key
        assert offered(selected, "udp", "do") == as_it_is
        reload("")  # by default they offer no HTTP/3, which is refused, but ECH
        assert {offered(selected, over) for over in ("udp", "tcp")} == {record(offer)}
        reload('quic = "bypass"')  # HTTP/3 passes
        assert {offered(selected, over) for over in ("udp", "tcp")} == {as_it_is}
        reload('action = "bypass"\ndns_ech = "strip"')  # what a policy bypasses over TCP stays as it is
        assert offered(selected, "tcp") == as_it_is


def test_under_run_answers_over_tcp_are_limited_and_those_over_udp_pass(offer: str, mitmsec: Mitmsec) -> None:
    """They do not come by the gate, which has no keys to take out: the kernel shows it copies."""
    told = mitmsec.run("--", *each("tcp", "udp"), *PYTHON, OFFERED, RESOLVER, HIDDEN).stdout
    assert told.splitlines() == [record(offer), f'1 . alpn="h3,h2" ech="{offer}"']


def test_under_run_answers_over_udp_are_limited_too_where_keys_are_to_be_taken_out(
    offer: str, mitmsec: Mitmsec
) -> None:
    """They come by the gate then, from name servers that the machine itself names; names are known as ever."""
    strip = mitmsec.policy('[defaults]\ndns_ech = "strip"\n')
    told = mitmsec.run("--policy", strip, "--", *each("udp", "tcp"), *PYTHON, OFFERED, RESOLVER, HIDDEN).stdout
    for one in told.splitlines():
        before, _, key = one.partition(" key65534=")
        assert before == record()
        assert key
    assert len(told.splitlines()) == 2
    (asked, _) = mitmsec.of_kind("connection")
    assert (asked["protocol"], asked["remote"]["address"], asked["remote"]["port"]) == ("dns", RESOLVER, 53)
    assert asked["datagrams"] == {"sent": 1, "received": 1}


def test_a_server_that_the_machine_does_not_name_is_met_when_it_is_asked_first(
    offer: str, mitmsec: Mitmsec, tmp_path: Path
) -> None:
    """What it answers to that question passes as it is."""
    strip = mitmsec.policy('[defaults]\ndns_ech = "strip"\n')
    other = tmp_path / "other-resolv.conf"
    other.write_text("nameserver 192.0.2.53\n")
    twice = OFFERED + "; time.sleep(0.5); " + OFFERED.splitlines()[-1]
    script = f'mount --bind {other} /etc/resolv.conf && exec "$@"'
    run = mitmsec.command("run", "--state", str(mitmsec.state), "--workers", "1", "--policy", strip, "--")
    entered, inner = run[: run.index(sys.executable)], run[run.index(sys.executable) :]
    words = (*PYTHON, "import time\n" + twice, RESOLVER, HIDDEN, "udp")
    done = subprocess.run(
        [*entered, "unshare", "-m", "sh", "-c", script, "sh", *inner, *words],
        capture_output=True, text=True, timeout=60, check=True, env=mitmsec.environment(),
    )  # fmt: skip
    first, second = done.stdout.splitlines()
    assert first == f'1 . alpn="h3,h2" ech="{offer}"'
    assert second.partition(" key65534=")[0] == record()


@pytest.mark.parametrize("mitmsec", ["nftables"], indirect=True)
def test_where_answers_do_not_come_by_that_is_a_fault(offer: str, mitmsec: Mitmsec) -> None:
    strip = mitmsec.policy('[defaults]\ndns_ech = "strip"\n')
    told = mitmsec.run("--policy", strip, "--", *PYTHON, OFFERED, RESOLVER, HIDDEN, "udp").stdout.strip()
    assert told == f'1 . alpn="h3,h2" ech="{offer}"'
    assert [event["what"] for event in mitmsec.of_kind("fault")] == ["dns_not_limited"]


# --- what becomes of hellos -------------------------------------------------------------------------------------------
def browsed(mitmsec: Mitmsec, roots: Path, policy: str, *overs: str) -> list[str]:
    """What browsers said that asked for the records over these (`grease`: not at all), in one run under this policy."""
    words = (BROWSER, RESOLVER, HIDDEN, PORT, BARE)
    environment = mitmsec.environment() | {"SSL_CERT_FILE": str(roots)}
    done = mitmsec.run("--policy", mitmsec.policy(policy), "--", *each(*overs), *PYTHON, *words, env=environment)
    return done.stdout.splitlines()


def hellos(mitmsec: Mitmsec) -> list[tuple[str, str, str | None, bool | None]]:
    """Of each TLS connection: what was done, by which rule, the name and whether there was another within."""
    flows = [event for event in mitmsec.of_kind("connection") if event["protocol"] == "tls"]
    clients = [(flow, flow["tls"]["client"]) for flow in flows]
    return [(flow["action"], flow["rule"], client["sni"], client.get("ech")) for flow, client in clients]


ECH_RULE = '[[rule]]\nname = "hidden"\nech = true\naction = "{}"\n'


def test_an_encrypted_hello_that_the_policy_lets_pass_reaches_its_origin(roots: Path, mitmsec: Mitmsec) -> None:
    policy = ECH_RULE.format("bypass")
    said = browsed(mitmsec, roots, policy, "udp", "grease")
    assert said == [f"offered {HIDDEN} ech=true", f"grease {HIDDEN} ech=false"]
    assert hellos(mitmsec) == [("bypass", "hidden", PUBLIC, True), ("bypass", "hidden", HIDDEN, True)]


def test_an_encrypted_hello_that_the_policy_refuses_goes_nowhere(roots: Path, mitmsec: Mitmsec) -> None:
    """Of who asks for signatures, and so has the key, too. Those in the clear are decrypted, by their own names."""
    policy = '[defaults]\ndns_ech = "strip"\n' + ECH_RULE.format("block")
    signed, grease, *others = browsed(mitmsec, roots, policy, "signed", "grease", "udp", "tcp")
    assert signed.startswith("failed")
    assert grease.startswith("failed")
    assert others == [f"false {HIDDEN} ech=false"] * 2, "its key was taken out"
    assert hellos(mitmsec) == [
        ("block", "hidden", PUBLIC, True),
        ("block", "hidden", HIDDEN, True),
        ("decrypt", "defaults", HIDDEN, None),
        ("decrypt", "defaults", HIDDEN, None),
    ]


def test_where_it_is_decrypted_a_client_learns_that_there_is_no_ech_and_comes_again_in_the_clear(
    roots: Path, mitmsec: Mitmsec
) -> None:
    """Each time (RFC 9849 §6.1.6). That it leaves is no refusal of our certificate: nothing is learned from it."""
    policy = (
        '[defaults]\nlearned_bypass = 1\n[[rule]]\nname = "by its own name"\nhost = ["hidden.zone"]\naction = "{}"\n'
    )
    seen = 0
    for action, times in (("bypass", 1), ("decrypt", 2)):
        said = browsed(mitmsec, roots, policy.format(action), *["udp"] * times)
        assert said == ["failed 101", f"false {HIDDEN} ech=false"] * times
        told = hellos(mitmsec)[seen:]
        seen += len(told)
        assert sorted(told, key=str) == sorted(  # in whatever order they end
            [("decrypt", "defaults", PUBLIC, True), (action, "by its own name", HIDDEN, None)] * times, key=str
        )
    assert mitmsec.of_kind("fault") == []
    assert {event["url"] for event in mitmsec.of_kind("request")} == {f"https://{HIDDEN}:{PORT}/"}
