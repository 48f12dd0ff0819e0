"""Real clients against a real origin, certificate verification on: what they see, and what the log then holds."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import trustme
from conftest import BARE, V4, V6, Mitmsec, Network, all_backends

pytestmark = [pytest.mark.root, pytest.mark.joined]
CURL = os.path.realpath(shutil.which("curl") or "curl")


WAYS = [(host, version) for host in (V4, f"[{V6}]", "origin.test") for version in ("--http1.1", "--http2")]
SOME_WAYS = [WAYS[0], WAYS[3], WAYS[4]]  # each address and each version, where only the way to the gate is another


@all_backends
def test_curl_is_decrypted_and_recorded(origin: Network, mitmsec: Mitmsec) -> None:
    ways = WAYS if mitmsec.backend == "connect_hook" else SOME_WAYS
    curls = [f"curl -sS {version} 'https://{host}/hello?token=secret'" for host, version in ways]
    done = mitmsec.run("--", "sh", "-ec", "\n".join(curls))
    said = [f"hello over HTTP/{'2.0' if version == '--http2' else '1.1'}" for _, version in ways]
    assert (done.returncode, done.stdout.splitlines()) == (0, said), done.stderr
    requests = mitmsec.of_kind("request")
    connections = {event["id"]: event for event in mitmsec.of_kind("connection")}
    assert len(requests) == len(connections) == len(ways)
    assert [request["connection"] for request in requests] == list(connections)
    for (host, version), request in zip(ways, requests, strict=True):
        _is_curls(request, mitmsec.backend, host, version)
        _was_decrypted(connections[request["connection"]])
    certificates = mitmsec.of_kind("certificate")  # each host's once, for its first connection
    names = list(dict.fromkeys(host for host, _ in ways))
    assert [certificate["names"] for certificate in certificates] == [[name.strip("[]")] for name in names]
    first = {host: request["connection"] for (host, _), request in reversed([*zip(ways, requests, strict=True)])}
    assert [certificate["connection"] for certificate in certificates] == [first[name] for name in names]


def _is_curls(request: dict[str, Any], backend: str, host: str, version: str) -> None:
    assert request["url"].startswith(f"https://{host}/hello")
    assert "secret" not in request["url"]
    assert request["status"] == 200
    assert request["http_version"] == ("HTTP/2" if version == "--http2" else "HTTP/1.1")
    assert request["process"]["exe"] == CURL
    assert request["process"]["sha256"] == hashlib.sha256(Path(CURL).read_bytes()).hexdigest()
    sure = "table" if backend == "nftables" else "kernel"
    assert request["process"]["confidence"] == sure


def _was_decrypted(connection: dict[str, Any]) -> None:
    assert (connection["action"], connection["rule"]) == ("decrypt", "defaults")
    assert connection["outcome"] == "completed"
    assert connection["remote"]["address"] in (V4, V6)
    assert connection["tls"]["server"]["verified"] is True
    assert connection["tls"]["client"]["version"] == "TLSv1.3"
    assert connection["bytes"]["received"] > connection["bytes"]["sent"] > 100


@all_backends
def test_a_bypassed_origin_is_seen_with_its_own_certificate_and_a_blocked_one_is_never_contacted(
    origin: Network, network: Network, mitmsec: Mitmsec
) -> None:
    private = '[[rule]]\nname = "private"\nhost = ["bank.test"]\naction = "bypass"\nreason = "4.2"\n'
    no_trackers = '[[rule]]\nname = "no trackers"\nhost = ["tracker.test"]\naction = "block"\n'
    script = (
        "import socket\nlistener = socket.create_server(('" + BARE + "', 443))\nprint('listening', flush=True)\n"
        "while True:\n    listener.accept()[0].close()\n    print('contact', flush=True)\n"
    )
    server = network.start(sys.executable, "-c", script, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "listening\n"
    policy = mitmsec.policy(private + no_trackers)
    curls = "curl -sSv https://bank.test/hello; echo $?; echo next >&2; curl -sS https://tracker.test/pixel; echo $?"
    done = mitmsec.run("--policy", policy, "--", "sh", "-c", curls)
    *_, passed, cut = done.stdout.splitlines()
    assert passed == "0", done.stderr
    assert "issuer: CN=Test Origins nginx" in done.stderr.partition("next\n")[0]
    assert cut == "35", done.stderr  # curl: the TLS handshake was cut
    bypassed, blocked = mitmsec.of_kind("connection")
    assert (bypassed["action"], bypassed["rule"], bypassed["reason"]) == ("bypass", "private", "4.2")
    assert bypassed["remote"]["host"] == "bank.test"
    assert bypassed["tls"]["client"]["ja4"].startswith("t13d")
    assert mitmsec.of_kind("request") == mitmsec.of_kind("certificate") == []
    assert (blocked["action"], blocked["rule"], blocked["outcome"]) == ("block", "no trackers", "blocked")
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(server.stdout))  # type: ignore[arg-type]
    reader.start()
    subprocess.run(network.inside("curl", "-sS", "-m", "2", f"https://{BARE}/"), capture_output=True, check=False)
    server.terminate()
    reader.join()
    assert said == ["contact\n"]  # ours just now, and no other


REQUESTS = "import requests; print(requests.get('{url}').text, end='')"
HTTPX = "import httpx, ssl; print(httpx.get('{url}', verify=ssl.create_default_context()).text, end='')"
URLLIB = "import urllib.request as u; print(u.urlopen('{url}').read().decode(), end='')"
NODE = "require('https').get('{url}', r => r.pipe(process.stdout))"


RUNTIMES = {
    "requests": [sys.executable, "-c", REQUESTS],
    "httpx": [sys.executable, "-c", HTTPX],
    "urllib": [sys.executable, "-c", URLLIB],
    "node": ["node", "-e", NODE],
    "git": ["git", "ls-remote", "{url}"],  # which finds no repository there
}


def test_runtimes_trust_what_their_environment_names(origin: Network, mitmsec: Mitmsec) -> None:
    """Each asks for a query of its own name, so that each one's request is told from the others'."""
    here = {name: command for name, command in RUNTIMES.items() if shutil.which(command[0])}
    asked = {name: f"https://origin.test/hello?{name}=" for name in here}
    commands = [shlex.join(word.replace("{url}", asked[name]) for word in command) for name, command in here.items()]
    done = mitmsec.run("--", "sh", "-c", "\n".join(f"{command}; echo $?" for command in commands))
    said = ["128" if name == "git" else "hello over HTTP/1.1\n0" for name in here]
    assert done.stdout.splitlines() == "\n".join(said).splitlines(), done.stderr
    requests = mitmsec.of_kind("request")
    assert {name for name, url in asked.items() if any(one["url"].startswith(url) for one in requests)} == set(here)
    assert len({one["process"]["exe"] for one in requests}) == len({command[0] for command in here.values()})
    assert all(connection["outcome"] == "completed" for connection in mitmsec.of_kind("connection"))
    if missing := set(RUNTIMES) - set(here):
        pytest.skip(f"all others did; not on this machine: {', '.join(sorted(missing))}")


def test_java_trusts_with_its_option(origin: Network, mitmsec: Mitmsec, tmp_path: Path) -> None:
    if shutil.which("java") is None:
        pytest.skip("java is not on this machine")
    source = tmp_path / "Get.java"
    source.write_text(
        "public class Get { public static void main(String[] a) throws Exception {"
        'System.out.print(new String(new java.net.URL("https://origin.test/hello").openStream().readAllBytes())); } }'
    )
    done = mitmsec.run("--java", "--", "java", str(source))
    assert (done.returncode, done.stdout) == (0, "hello over HTTP/1.1\n"), done.stderr


WHO_ARE_YOU = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1] + "/origin.pem", sys.argv[1] + "/origin.key")
context.load_verify_locations(sys.argv[2])
context.verify_mode = ssl.CERT_REQUIRED
listener = socket.create_server((sys.argv[3], 8444))
print("listening", flush=True)
while True:
    try:
        with context.wrap_socket(listener.accept()[0], server_side=True) as client:
            client.recv(9999)
            who = dict(client.getpeercert()["subjectAltName"])["email"].encode()
            client.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n%s\\n" % (len(who) + 1, who))
    except OSError:
        pass
"""


@pytest.mark.checklist("C10")
def test_an_origin_that_asks_for_a_certificate_gets_the_programs_own_or_that_of_the_policy(
    origin: Network, mitmsec: Mitmsec, tmp_path: Path
) -> None:
    """Without one in the policy the first connection is reset, and the next passes: the program shows its own."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for who in ("program", "policy"):
        leaf = authority.issue_cert(f"{who}@partner.test")
        leaf.cert_chain_pems[0].write_to_path(tmp_path / f"{who}.pem")
        leaf.private_key_pem.write_to_path(tmp_path / f"{who}.key")
        (tmp_path / f"{who}.key").chmod(0o600)
    arguments = (str(origin.folder), str(tmp_path / "ca.pem"), V4)
    server = origin.start(sys.executable, "-c", WHO_ARE_YOU, *arguments, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "listening\n"
    curl = f"curl -sS --cert {tmp_path}/program.pem --key {tmp_path}/program.key https://origin.test:8444/"
    done = mitmsec.run("--", "sh", "-c", f"{curl}; {curl}")
    assert done.stdout == "program@partner.test\n", done.stderr
    seen = mitmsec.of_kind("connection")
    assert [(one["action"], one["outcome"]) for one in seen] == [("decrypt", "origin_refused"), ("bypass", "completed")]
    assert seen[0]["tls"]["server"]["asks_certificate"] is True
    policy = mitmsec.policy(
        f'[[client_certificate]]\nname = "us"\ncertificate = "{tmp_path}/policy.pem"\nkey = "{tmp_path}/policy.key"\n'
        '[[rule]]\nname = "partner"\nport = [8444]\naction = "decrypt"\nclient_certificate = "us"\n'
    )
    done = mitmsec.run("--policy", policy, "--", "sh", "-c", curl)
    assert done.stdout == "policy@partner.test\n", done.stderr
    named = mitmsec.of_kind("connection")[2]
    assert (named["action"], named["tls"]["server"]["client_certificate"]) == ("decrypt", "us")


def test_a_program_with_its_own_roots_is_refused_and_the_log_says_so(origin: Network, mitmsec: Mitmsec) -> None:
    """curl with roots of its own, and wget, which does not listen to its environment."""
    url = "https://origin.test/hello"
    script = f"curl -sS --cacert {origin.root_pem} {url}; echo $?; wget -qO- {url}; echo $?"
    done = mitmsec.run("--", "sh", "-c", script)
    assert done.stdout == "60\n5\n", done.stderr
    assert [connection["outcome"] for connection in mitmsec.of_kind("connection")] == ["client_rejected"] * 2
    assert mitmsec.of_kind("request") == []


@all_backends
def test_plain_http_is_read_and_recorded_and_a_large_download_arrives_whole_and_one_on_loopback_is_an_origin(
    origin: Network, mitmsec: Mitmsec, tmp_path: Path
) -> None:
    versions = ("http1.1", "http2")
    commands = ["curl -sS http://origin.test/missing -o /dev/null -w '%{http_code}'"]
    commands += [f"curl -sS --{version} https://origin.test/megabytes -o {tmp_path / version}" for version in versions]
    urls = ["http://origin.test/missing", *["https://origin.test/megabytes"] * 2]
    if mitmsec.backend != "windivert":  # whose network is another than the origin's
        urls.append("https://127.0.0.1:8443/hello")
        commands.append(f"curl -sS {urls[-1]} -o /dev/null")
    done = mitmsec.run("--", "sh", "-ec", "\n".join(commands))
    assert (done.returncode, done.stdout) == (0, "404"), done.stderr
    requests = mitmsec.of_kind("request")
    assert [request["url"] for request in requests] == urls
    assert requests[0]["status"] == 404
    connections = {event["id"]: event for event in mitmsec.of_kind("connection")}
    assert len(connections) == len(urls)
    assert connections[requests[0]["connection"]]["protocol"] == "http"
    for version in versions:
        assert (tmp_path / version).read_bytes() == (origin.folder / "www" / "megabytes").read_bytes()


def test_roots_that_the_policy_names_verify_origins_and_are_not_told_to_the_command(
    origin: Network, mitmsec: Mitmsec
) -> None:
    """An origin of a private CA, which the caller's own roots do not hold. Files lie beside the policy."""
    environment = mitmsec.environment() | {"SSL_CERT_FILE": str(origin.folder / "bank.test.pem")}
    command = ["--", "curl", "-sS", "https://origin.test/hello"]
    assert mitmsec.run(*command, env=environment).returncode == 60
    (mitmsec.state.parent / "private-ca.pem").write_bytes(origin.root_pem.read_bytes())
    policy = mitmsec.policy('[defaults]\nupstream_roots = ["private-ca.pem"]\n')
    decrypted = mitmsec.run("--policy", policy, *command, env=environment)
    assert decrypted.stdout.startswith("hello over HTTP/2"), decrypted.stderr
    *_, connection = mitmsec.of_kind("connection")
    assert connection["tls"]["server"]["verified"] is True
    bypassing = mitmsec.policy('[defaults]\naction = "bypass"\nupstream_roots = ["private-ca.pem"]\n')
    assert mitmsec.run("--policy", bypassing, *command, env=environment).returncode == 60
    (mitmsec.state.parent / "private-ca.pem").write_text("no certificate")
    refused = mitmsec.run("--policy", policy, *command, env=environment)
    assert refused.returncode == 2
    assert f"{policy}:3: defaults.upstream_roots[0]: private-ca.pem: no certificate in PEM form in it" in refused.stderr
