"""Clients and origins that misbehave: bounded, recorded, and without effect on anybody else."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from badssl_certificates import Certified
from badssl_revocation import revocation_list
from client_stage import client
from conftest import BARE, V4, Mitmsec, Network, status_of
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from issuer_stage import naming

pytestmark = [pytest.mark.root, pytest.mark.joined]
CURL = os.path.realpath(shutil.which("curl") or "curl")

HOLDER = """
import asyncio, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
async def hold(reader, writer):
    try: await reader.read()
    except OSError: pass
async def main():
    server = await asyncio.start_server(hold, "203.0.113.20", 9000, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""

IDLERS = """
import resource, socket, subprocess, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
held = [socket.create_connection(("203.0.113.20", 9000), 20) for _ in range(10_000)]
print("held", len(held), flush=True)
input()
began = time.monotonic()
print(subprocess.run(["curl", "-sS", "-m", "20", "https://origin.test/hello"], capture_output=True, text=True).stdout)
print("after", round(time.monotonic() - began, 2), flush=True)
input()
"""


@pytest.fixture
def holder(network: Network) -> Iterator[None]:
    process = network.start(sys.executable, "-c", HOLDER, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.joined(False)
def test_ten_thousand_idle_connections_disturb_nobody(origin: Network, holder: None, mitmsec: Mitmsec) -> None:
    run = mitmsec.start("--", sys.executable, "-c", IDLERS, stdin=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdin is not None
    assert run.stdout.readline() == "held 10000\n"
    (gate,) = [pid for role, pid, _ in status_of(mitmsec).processes if role == "gate"]
    run.stdin.write("\n")
    run.stdin.flush()
    assert run.stdout.readline().startswith("hello over"), run.communicate("\n")
    resident_kib = int(Path(f"/proc/{gate}/status").read_text().partition("VmRSS:")[2].split()[0])
    assert resident_kib < 400_000
    run.communicate("\n", timeout=60)
    assert run.returncode == 0
    assert len(mitmsec.of_kind("connection")) == 10_001


ODD_CLIENTS = {
    "half a hello, then silence": "s.sendall(hello[:60]); time.sleep(1)",
    "half a hello, then the end": "s.sendall(hello[:60]); s.shutdown(1)",
    "a hello one byte at a time": "[s.sendall(hello[i:i+1]) for i in range(len(hello))]; s.recv(1)",
    "a record that claims too much": "s.sendall(b'\\x16\\x03\\x01\\xff\\xff' + bytes(70_000)); s.recv(1)",
    "noise": "s.sendall(bytes(range(256)) * 40); s.recv(1)",
    "nothing at all": "time.sleep(0.6)",
    "a reset": "s.setsockopt(1, 13, b'\\1\\0\\0\\0\\0\\0\\0\\0'); s.sendall(hello)",
}


@pytest.mark.checklist("C9")
def test_an_odd_client_is_recorded_and_the_next_one_served(origin: Network, mitmsec: Mitmsec) -> None:
    """One odd client after another, each followed by curl, in one run."""
    hello = next((Path(__file__).parents[1] / "data" / "hellos").glob("*.bin")).read_bytes()
    commands = []
    for name, does in ODD_CLIENTS.items():
        script = (
            f"import os, socket, time\nprint('odd', os.getpid(), {name!r}, flush=True)\n"
            f"hello = bytes.fromhex('{hello.hex()}')\n"
            "s = socket.create_connection(('203.0.113.10', 443), 5); s.settimeout(8)\n"
            f"try:\n    {does}\nexcept OSError as error: print(error)\ns.close()\n"
            "time.sleep(0.5)\n"  # so that it can be read whose it is: another story than this one
        )
        odd = shlex.join([sys.executable, "-c", script])
        commands += [odd, f"echo after {shlex.quote(name)}: `curl -sS https://origin.test/hello`"]
    done = mitmsec.run("--", "sh", "-c", "\n".join(commands), timeout_s=100)
    for name in ODD_CLIENTS:
        assert f"after {name}: hello over HTTP" in done.stdout, done.stderr
    connections = mitmsec.of_kind("connection")
    curls = [event for event in connections if event["process"]["exe"] == CURL]
    assert len(curls) == len(ODD_CLIENTS)
    pids = dict(line.split(" ", 2)[:0:-1] for line in done.stdout.splitlines() if line.startswith("odd "))
    seen = [event["process"]["pid"] for event in connections if event not in curls]
    for name in ODD_CLIENTS.keys() - {"a reset"}:  # which the gate may never have got to see: nothing was sent anywhere
        assert seen.count(int(pids[name])) == 1, name
    assert len(seen) <= len(ODD_CLIENTS)
    assert [event for event in connections if not event["process"]["exe"]] == []
    assert [event["what"] for event in mitmsec.of_kind("fault") if event["what"].endswith("_died")] == []


def test_a_client_that_never_reads_holds_back_its_origin(origin: Network, mitmsec: Mitmsec) -> None:
    script = (
        "import socket, ssl, subprocess, time\n"
        "context = ssl.create_default_context()\n"
        "lazy = []\n"
        "for _ in range(8):\n"
        "    plain = socket.create_connection(('203.0.113.10', 443), 5)\n"
        "    secure = context.wrap_socket(plain, server_hostname='origin.test')\n"
        "    secure.sendall(b'GET /megabytes HTTP/1.1\\r\\nHost: origin.test\\r\\n\\r\\n')\n"
        "    lazy.append(secure)\n"
        "time.sleep(2)\n"
        "print(subprocess.run(['curl', '-sS', 'https://origin.test/hello'], capture_output=True, text=True).stdout)\n"
    )
    done = mitmsec.run("--", sys.executable, "-c", script)
    assert "hello over" in done.stdout, done.stderr
    connections = mitmsec.of_kind("connection")
    assert len(connections) == 9
    assert all(event["bytes"]["received"] < (8 << 20) for event in connections if event["bytes"]["received"] > 100_000)


# --- origins that fail: the client sees a failure of the same kind, the event says which ------------------------------
def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def flawed(origin: Network) -> dict[str, tuple[Path, Path]]:
    """Certificate and key for each flaw."""
    folder = origin.folder
    found = {}
    for flaw in ("expired", "wrong_name"):
        pem, key, request = folder / f"{flaw}.pem", folder / f"{flaw}.key", folder / f"{flaw}.csr"
        openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", str(key), "-out",
                str(request))  # fmt: skip
        san = folder / f"{flaw}.ext"
        san.write_text(f"subjectAltName=DNS:{'other.test' if flaw == 'wrong_name' else 'tracker.test'}\n")
        if flaw == "expired":  # `openssl x509` of OpenSSL 3.0 cannot set dates: `ca` can
            database = folder / "ca-db"
            database.write_text("")
            (folder / "ca.cnf").write_text(
                f"[ca]\ndefault_ca=d\n[d]\ndatabase={database}\nnew_certs_dir={folder}\nrand_serial=yes\n"
                "default_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n"
            )
            openssl("ca", "-batch", "-config", str(folder / "ca.cnf"), "-in", str(request), "-out", str(pem),
                    "-cert", str(folder / "nginx-ca.pem"), "-keyfile", str(folder / "nginx-ca.key"),
                    "-extfile", str(san), "-startdate", "20200101000000Z", "-enddate", "20200201000000Z",
                    "-notext")  # fmt: skip
        else:
            openssl("x509", "-req", "-in", str(request), "-CA", str(folder / "nginx-ca.pem"), "-CAkey",
                    str(folder / "nginx-ca.key"), "-CAcreateserial", "-extfile", str(san), "-days", "10",
                    "-out", str(pem))  # fmt: skip
        found[flaw] = (pem, key)
    pem, key = folder / "untrusted.pem", folder / "untrusted.key"
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "10", "-subj", "/CN=tracker.test", "-addext",
            "subjectAltName=DNS:tracker.test", "-keyout", str(key), "-out", str(pem))  # fmt: skip
    found["untrusted"] = (pem, key)
    found["revoked"] = revoked_pair(folder)
    return found


def revoked_pair(folder: Path) -> tuple[Path, Path]:
    """Certificate and key; the list that has the certificate is at the origins' own web server."""
    private = serialization.load_pem_private_key((folder / "nginx-ca.key").read_bytes(), None)
    ca = Certified(x509.load_pem_x509_certificate((folder / "nginx-ca.pem").read_bytes()), private)  # type: ignore[arg-type]
    leaf = ca.leaf("tracker.test", more=naming(crl=f"http://{V4}/revoked.crl"))
    (folder / "www" / "revoked.crl").write_bytes(revocation_list(ca, leaf))
    (pem, key) = folder / "revoked.pem", folder / "revoked.key"
    pem.write_bytes(leaf.pem)
    key.write_bytes(leaf.key_pem)
    return pem, key


def server(network: Network, script: str) -> subprocess.Popen[str]:
    process = network.start(sys.executable, "-c", script, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


TLS_SERVER = """
import socket, ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain({pem!r}, {key!r})
listener = socket.create_server(("{address}", {port}))
print("ready", flush=True)
while True:
    plain, _ = listener.accept()
    try:
        with context.wrap_socket(plain, server_side=True) as secure:
            secure.recv(999); secure.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    except OSError: pass
"""


FLAWS = {
    "expired": "expired",
    "wrong_name": "no alternative certificate subject name",
    "untrusted": "certificate",
    "revoked": "unable to get local issuer",
}


def test_an_invalid_certificate_is_mirrored(
    origin: Network, flawed: dict[str, tuple[Path, Path]], mitmsec: Mitmsec
) -> None:
    """Each at a port of its own."""
    ports = dict(zip(FLAWS, range(4431, 4435), strict=True))
    processes, commands = [], []
    for flaw, port in ports.items():
        pem, key = flawed[flaw]
        processes.append(server(origin, TLS_SERVER.format(pem=str(pem), key=str(key), address=BARE, port=port)))
        curl = f"-m 10 https://tracker.test:{port}/"
        commands.append(f"curl -sS {curl}; echo $?; echo next >&2; curl -sSk {curl}; echo")
    try:
        done = mitmsec.run("--", "sh", "-c", "\n".join(commands))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert done.stdout == "60\nok\n" * len(FLAWS), done.stderr
    for said, words in zip(done.stderr.split("next\n"), FLAWS.values(), strict=False):
        assert words in said
    connections = mitmsec.of_kind("connection")
    for flaw, port in ports.items():
        first = next(event for event in connections if event["remote"]["port"] == port)
        assert first["tls"]["server"]["verified"] is False
        assert first["tls"]["server"]["error"]
        assert flaw != "revoked" or first["tls"]["server"]["error"] == "the certificate was revoked (CRL)"
        assert first["outcome"] in ("origin_certificate", "client_rejected")


def test_an_origin_that_refuses_or_resets_in_the_handshake_is_a_reset_and_no_route_fails_as_it_would_have(
    network: Network, mitmsec: Mitmsec
) -> None:
    resetting = (
        f"import socket, struct\nlistener = socket.create_server(('{BARE}', 443))\nprint('ready', flush=True)\n"
        "while True:\n    s, _ = listener.accept(); s.recv(99)\n"
        "    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()\n"
    )
    no_route = (
        "import socket\n"
        "try: socket.create_connection(('198.51.100.1', 443), 5)\nexcept OSError as error: print(error.errno)\n"
    )
    curl = "curl -sS -m 10"
    commands = (
        f"{curl} https://{BARE}:4444/; echo $?; echo next >&2",
        f"{curl} https://tracker.test/; echo $?",
        shlex.join([sys.executable, "-c", no_route]),
    )
    process = server(network, resetting)
    try:
        done = mitmsec.run("--", "sh", "-c", "\n".join(commands))
    finally:
        process.kill()
        process.wait()
    plain = subprocess.run(network.inside(sys.executable, "-c", no_route), capture_output=True, text=True, check=True)
    refused, reset, fails = done.stdout.splitlines()
    assert refused == reset == "35", done.stderr
    assert "reset" in done.stderr.partition("next\n")[0]
    assert f"{fails}\n" == plain.stdout
    assert [event["outcome"] for event in mitmsec.of_kind("connection")] == ["origin_refused", "origin_reset"]


def test_a_command_that_leaves_the_network_namespace_follows_on_failure(network: Network, mitmsec: Mitmsec) -> None:
    """In there 127.0.0.1 is somebody else's: nobody listens, so an undiverted connection is refused, not denied."""
    inner = (
        "import errno, socket\n"
        "try: socket.create_connection(('203.0.113.10', 443), 3)\n"
        "except OSError as error: print(errno.errorcode[error.errno])\n"
    )
    enter = 'ip link set lo up; ip address add 203.0.113.10 dev lo; exec "$0" -c "$1"'
    for on_failure, error in (("open", "ECONNREFUSED"), ("closed", "EPERM")):
        policy = mitmsec.policy(f'[defaults]\naction = "bypass"\non_failure = "{on_failure}"\n')
        done = mitmsec.run("--policy", policy, "--", "unshare", "-n", "sh", "-c", enter, sys.executable, inner)
        assert done.stdout == f"{error}\n", done.stderr
    faults = [event for event in mitmsec.of_kind("fault") if event["what"] == "other_network_namespace"]
    assert {event["failed"] for event in faults} == {"open", "closed"}


@pytest.mark.unread
def test_quic_is_refused_and_recorded_so_that_clients_fall_back(network: Network, mitmsec: Mitmsec) -> None:
    script = (
        "import socket, time\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "try: s.sendto(b'quic', ('203.0.113.20', 443)); print('sent')\nexcept OSError as error: print(error.errno)\n"
        "s.sendto(b'dns', ('203.0.113.20', 53)); print('dns sent', flush=True); time.sleep(0.5)\n"
    )
    done = mitmsec.run("--", sys.executable, "-c", script)
    assert done.stdout.splitlines()[1] == "dns sent"
    assert done.stdout.splitlines()[0] != "sent"
    refused, passed = sorted(mitmsec.of_kind("connection"), key=lambda event: event["action"])
    assert (refused["protocol"], refused["action"], refused["outcome"]) == ("quic", "block", "blocked")
    assert (passed["protocol"], passed["action"], passed["outcome"]) == ("dns", "bypass", "completed")
    assert {event["process"]["exe"] for event in (refused, passed)} == {str(Path(sys.executable).resolve())}


def test_another_hosts_request_on_this_connection_is_misdirected(origin: Network, mitmsec: Mitmsec) -> None:
    asks = "-sS -H 'Host: bank.test' -o /dev/null -w '%{http_code}\\n' https://origin.test/hello"
    done = mitmsec.run("--", "sh", "-c", f"curl --http1.1 {asks}; curl --http2 {asks}")
    assert done.stdout == "421\n421\n", done.stderr
    assert [request["status"] for request in mitmsec.of_kind("request")] == [421, 421]
    log = (origin.folder / "access.log").read_text()
    assert " 421 " not in log


@pytest.mark.unread
def test_a_long_connection_is_recorded_when_it_is_still_alive(origin: Network, mitmsec: Mitmsec) -> None:
    with client(mitmsec, "open", rules='action = "bypass"\n') as program:
        assert program.tries()
        run = mitmsec.start(
            "--", sys.executable, "-c",
            "import socket, time; s = socket.create_connection(('203.0.113.10', 80)); time.sleep(12)",
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while not (alive := [event for event in mitmsec.events("--kind", "connection") if event["outcome"] == "open"]):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        run.communicate(timeout=60)
        program.end()
    ended = [event for event in mitmsec.of_kind("connection") if event["id"] == alive[0]["connection"]]
    assert len(ended) == 1


CONNECTED_BY_ONE_THAT_ENDS = """
import os, select, socket, ssl
trust = ssl.create_default_context()
for _ in range(12):
    s = socket.socket()
    s.setblocking(False)
    child = os.fork()
    if not child:
        s.connect_ex(("203.0.113.10", 443))
        os._exit(0)
    os.waitpid(child, 0)
    select.select([], [s], [], 5)
    s.settimeout(10)
    try:
        with trust.wrap_socket(s, server_hostname="origin.test") as tls:
            tls.sendall(b"GET /hello HTTP/1.1\\r\\nHost: origin.test\\r\\nConnection: close\\r\\n\\r\\n")
            print(dict(x[0] for x in tls.getpeercert()["issuer"])["commonName"], flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


@pytest.mark.parametrize(("on_failure", "action"), [("open", "bypass"), ("closed", "block")])
def test_who_ends_before_it_can_be_read_does_not_escape_the_rule_about_its_program(
    origin: Network, mitmsec: Mitmsec, tmp_path: Path, on_failure: str, action: str
) -> None:
    """The connection outlives it: it was made on a socket that its parent has too.

    Of two programs: the policy says the path of one, and what is in the other.
    """
    python = Path(sys.executable).resolve()
    other = tmp_path / "another-python"
    other.write_bytes(python.read_bytes() + b"and more")
    other.chmod(0o755)
    told = {"path": python, "sha256": hashlib.sha256(other.read_bytes()).hexdigest()}
    policy = mitmsec.policy(
        f'[defaults]\non_failure = "{on_failure}"\n'
        + "".join(
            f'[[application]]\nname = "by {asked}"\n{asked} = ["{value}"]\n'
            f'[[rule]]\nname = "private by {asked}"\napplication = ["by {asked}"]\naction = "{action}"\n'
            for asked, value in told.items()
        )
    )
    both = (sys.executable, "env", f"PYTHONHOME={sys.base_prefix}", str(other))
    script = '"$1" -c "$0"; "$2" "$3" "$4" -c "$0"'
    done = mitmsec.run("--policy", policy, "--", "sh", "-c", script, CONNECTED_BY_ONE_THAT_ENDS, *both)
    assert done.returncode == 0, done.stderr
    seen = mitmsec.of_kind("connection")
    assert len(seen) == len(done.stdout.split("\n")) - 1 == 24
    assert mitmsec.of_kind("request") == []
    if on_failure == "open":
        assert {event["action"] for event in seen} == {"bypass"}
        assert not any(line.startswith("mitmsec") for line in done.stdout.splitlines())
    else:
        assert {event["outcome"] for event in seen} <= {"blocked", "fault"}
        assert not any("Error" not in line for line in done.stdout.splitlines())
