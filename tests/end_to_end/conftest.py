"""A network of our own, real origins in it, and `mitmsec run` as a person would call it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import machine
import names_stage
import pytest
from click.testing import CliRunner

from mitmsec.channel import Channel
from mitmsec.cli import cli
from mitmsec.core.messages import Message
from mitmsec.service import control
from mitmsec.service.state import State
from mitmsec_certs.origin_pki import origin_pki
from mitmsec_redirect import cgroup, nft

V4, V6, BARE = "203.0.113.10", "2001:db8::10", "203.0.113.20"
FAR_V4, FAR_PEER_V4 = "10.79.0.1", "10.79.0.2"  # of `far`, on the link, and of who is at its other end
RESOLVER = BARE
HOSTS = {"origin.test": V4, "bank.test": V4, "tracker.test": BARE, "six.test": V6}
MITMSEC = [sys.executable, "-m", "mitmsec"]

NGINX = """\
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log {folder}/access.log; client_body_temp_path {folder}/body; client_max_body_size 0;
  proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen {v4}:443 ssl http2; listen [{v6}]:443 ssl http2; listen {v4}:80; listen 127.0.0.1:8443 ssl http2;
    ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {folder}/origin.pem; ssl_certificate_key {folder}/origin.key;
    root {folder}/www;
    location /hello {{ default_type text/plain; return 200 "hello over $server_protocol\\n"; }}
    location /missing {{ return 404; }}
    location /advertised {{
      default_type text/html; add_header Alt-Svc 'h3=":443"; ma=3600';
      return 200 "hello over $server_protocol<img src=/missing>";
    }}
  }}
}}
"""


@dataclass
class Network:
    """A network namespace with loopback only, its addresses, its own names, and origins that run in it."""

    name: str
    folder: Path
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)
    holder: int = 0
    states: set[str] = field(default_factory=set)
    """The identities of the states that our tests had."""

    def inside(self, *command: str) -> list[str]:
        """`command` as it is run in this network, with our names in /etc/hosts."""
        return ["nsenter", f"--net=/run/netns/{self.name}", f"--mount=/proc/{self.holder}/ns/mnt", *command]

    def hold(self) -> None:
        """Keep one mount namespace for all commands, with our names in it and everything else as it is."""
        script = 'mount --bind "$0" /etc/hosts && echo held && exec sleep infinity'
        command = ["unshare", "-m", "sh", "-c", script, str(self.folder / "hosts")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        self.holder = process.pid

    def start(self, *command: str, **options: Any) -> subprocess.Popen[Any]:
        process = subprocess.Popen(self.inside(*command), **options)
        self.processes.append(process)
        return process

    @property
    def root_pem(self) -> Path:
        return self.folder / "root.pem"


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folder = Path(tempfile.mkdtemp(prefix="mitmsec-e2e-"))
    folder.chmod(0o755)
    net = Network(f"mitmsec-e2e-{os.getpid()}", folder)
    subprocess.run(["ip", "netns", "add", net.name], check=True)
    try:
        for words in (
            ["link", "set", "lo", "up"],
            *(["address", "add", address, "dev", "lo"] for address in (V4, BARE)),
            ["-6", "address", "add", V6, "dev", "lo", "nodad"],
        ):
            subprocess.run(["ip", "-n", net.name, *words], check=True)
        hosts = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in HOSTS.items())
        (folder / "hosts").write_text(hosts)
        _pki(folder)
        net.hold()
        yield net
    finally:
        end_all(net.name, net.states)
        for process in net.processes:
            process.kill()
            process.wait()
        subprocess.run(["ip", "netns", "delete", net.name], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def end_all(namespace: str, states: Collection[str] = ()) -> None:
    """Whoever is left in it: an interrupted test ends nothing, and a supervisor left behind watches the machine.

    The cgroups of these states' sessions go too, unless somebody lives in one: no state has the identity of another.
    """
    with contextlib.suppress(OSError):
        network = os.stat(f"/run/netns/{namespace}").st_ino
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + 5
            while (pids := _living_in(network)) and time.monotonic() < deadline:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                time.sleep(0.1)
    for state in states:
        for left in cgroup.leftovers(state):
            left.remove()


def _living_in(network: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "ns" / "net").stat().st_ino == network and " Z " not in (folder / "stat").read_text():
                found.append(int(folder.name))
    return found


def _pki(folder: Path) -> None:
    pki = origin_pki("Test Origins", tuple(HOSTS), int(time.time()))
    (folder / "root.pem").write_bytes(pki.root)
    for name, (chain, key) in pki.servers.items():
        (folder / f"{name}.pem").write_bytes(chain)
        (folder / f"{name}.key").write_bytes(key)


@pytest.fixture(scope="session")
def origin(network: Network) -> Network:
    """nginx over TLS 1.3, HTTP/1.1 and HTTP/2, on IPv4 and IPv6, one certificate for all names of its address."""
    folder = network.folder
    (folder / "www").mkdir()
    (folder / "www" / "megabytes").write_bytes(os.urandom(1 << 20) * 8)
    servers = origin_pki_for(folder)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, v4=V4, v6=f"{V6}"))
    network.start("nginx", "-c", str(folder / "nginx.conf"), stderr=subprocess.DEVNULL)
    _until_listening(network, V4, 443)
    assert servers
    return network


def origin_pki_for(folder: Path) -> bool:
    """One certificate that carries every name: made by openssl, since ours carries exactly one."""
    names = ",".join([*(f"DNS:{name}" for name in HOSTS), f"IP:{V4}", f"IP:{V6}", "IP:127.0.0.1"])
    key, pem = folder / "origin.key", folder / "origin.pem"
    base = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
    ca_key, ca_pem = folder / "nginx-ca.key", folder / "nginx-ca.pem"
    subprocess.run(
        [
            *base,
            "-subj",
            "/CN=Test Origins nginx",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
            "-keyout",
            str(ca_key),
            "-out",
            str(ca_pem),
        ],
        check=True,
        capture_output=True,
    )
    subprocess.run(
        [
            *base, "-CA", str(ca_pem), "-CAkey", str(ca_key), "-subj", "/CN=origin.test", "-addext",
            f"subjectAltName={names}", "-addext", "basicConstraints=critical,CA:FALSE",
            "-addext", "extendedKeyUsage=serverAuth",
            "-keyout", str(key), "-out", str(pem),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    with open(folder / "root.pem", "ab") as roots:
        roots.write(ca_pem.read_bytes())
    return True


def _until_listening(network: Network, address: str, port: int) -> None:
    probe = (
        "import socket, sys, time\n"
        "end = time.monotonic() + 10\n"
        "while True:\n"
        "    try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).close(); break\n"
        "    except OSError:\n"
        "        if time.monotonic() > end: raise\n"
        "        time.sleep(0.02)\n"
    )
    subprocess.run(network.inside(sys.executable, "-c", probe, address, str(port)), check=True)


@pytest.fixture(scope="session")
def far(network: Network) -> Iterator[Network]:
    """Another namespace, from which the origins' is reached over a link, as machines are: what `windivert` needs."""
    name = f"mitmsec-far-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for words in (
            f"-n {name} link add va type veth peer name vb netns {network.name}",
            f"-n {name} address add {FAR_V4}/24 dev va",
            f"-n {name} -6 address add fd79::1/64 dev va nodad",
            f"-n {network.name} address add {FAR_PEER_V4}/24 dev vb",
            f"-n {network.name} -6 address add fd79::2/64 dev vb nodad",
            f"-n {network.name} link set vb up",
            f"-n {name} link set lo up",
            f"-n {name} link set va up",
            f"-n {name} route add default via {FAR_PEER_V4}",
            f"-n {name} -6 route add default via fd79::2",
        ):
            subprocess.run(["ip", *words.split()], check=True)
        yield replace(network, name=name, processes=[])
    finally:
        end_all(name, network.states)
        subprocess.run(["ip", "netns", "delete", name], check=False)


def here(*arguments: str) -> str:
    """What the command line prints, in this process: to start another for each look takes half of a test's time."""
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    if done.output.endswith("Aborted!\n"):
        raise KeyboardInterrupt
    assert done.exit_code == 0, done.output
    return done.stdout


@dataclass
class Mitmsec:
    """The command line on one state directory, inside one network."""

    network: Network
    state: Path
    backend: str = ""  # for --backend; empty: its default
    told: int = -1  # number of the log's last event that is of tests before
    told_at: str = ""  # its time
    unread: bool = False
    """Runs that name no policy bypass everything: a worker is half of what the others cost."""

    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return kept | {"SSL_CERT_FILE": str(self.network.root_pem)}

    def command(self, *arguments: str) -> list[str]:
        return self.network.inside(*MITMSEC, *arguments)

    def run(self, *arguments: str, timeout_s: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        """`mitmsec run --state … ARGUMENTS`, to its end."""
        options = {"capture_output": True, "text": True, "env": self.environment()} | options
        return subprocess.run(self.begun_by(*arguments), timeout=timeout_s, check=False, **options)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        return subprocess.Popen(self.begun_by(*arguments), env=self.environment(), **options)

    def begun_by(self, *arguments: str) -> list[str]:
        """The command that begins such a run."""
        choice = ["--backend", self.backend] if self.backend else []
        if "--workers" not in arguments:  # half of the time that a run takes to start is its second worker's
            choice += ["--workers", "1"]
        if self.unread and "--policy" not in arguments:
            choice += ["--policy", self.policy('[defaults]\naction = "bypass"\n')]
        return self.command("run", "--state", str(self.state), *choice, *arguments)

    def events(self, *filters: str) -> list[dict[str, Any]]:
        since = ("--since", self.told_at) if self.told_at else ()
        listed = here("audit", "list", "--state", str(self.state), "--json", "--limit", "100000", *since, *filters)
        return [event for line in listed.splitlines() if (event := json.loads(line))["seq"] > self.told]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events("--kind", kind) if event.get("outcome") != "open"]

    def policy(self, text: str) -> str:
        path = self.state.parent / f"policy-{time.monotonic_ns()}.toml"
        path.write_text("version = 1\n" + text)
        return str(path)


NFTABLES = pytest.param(
    "nftables", marks=pytest.mark.skipif(shutil.which("nft", path=nft.FOLDERS) is None, reason="nft is not installed")
)
both_backends = pytest.mark.parametrize("mitmsec", ["connect_hook", NFTABLES], indirect=True)
all_backends = pytest.mark.parametrize("mitmsec", ["connect_hook", NFTABLES, "windivert"], indirect=True)
by_nftables = pytest.mark.parametrize("mitmsec", [NFTABLES], indirect=True)


@pytest.fixture
def mitmsec(network: Network, request: pytest.FixtureRequest) -> Iterator[Mitmsec]:
    """With the backend that the test's parameter names; `windivert` in a namespace of its own."""
    backend = getattr(request, "param", "")
    with contextlib.ExitStack() as concerned:
        if backend == "windivert":
            network = request.getfixturevalue("far")
            concerned.enter_context(
                machine.concerned(machine.SWEPT)
            )  # a start, and `clean`, sweep what killed ones left
        unread = request.node.get_closest_marker("unread") is not None
        if (mark := request.node.get_closest_marker("joined")) and mark.args in ((), (True,)):
            state = request.getfixturevalue("joined_state")(network)
            last = json.loads(here("audit", "list", "--state", str(state), "--json", "--limit", "1") or "{}")
            yield Mitmsec(network, state, backend, last.get("seq", -1), last.get("time", ""), unread=unread)
        else:
            yield from _mitmsec(network, backend, unread=unread)


HOLD = """
import sys
from pathlib import Path
from mitmsec.service import control
from mitmsec.service.joining import join
from mitmsec.service.state import State
state = State(Path(sys.argv[1]))
channel = join(state, worker=True)
print("up", flush=True)
with control.connect(state.control) as held:
    channel.close()
    held.recv(1)
"""


class Joined:
    """The supervisor of a state in one network, held."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._folder = Path(tempfile.mkdtemp(prefix="mitmsec-joined-"))
        self._folder.chmod(0o755)
        self.state = self._folder / "state"
        self._holder: subprocess.Popen[Any] | None = None

    def held(self) -> Path:
        """Its state, once it is up."""
        if self._holder is None or self._holder.poll() is not None:
            command = [sys.executable, "-c", HOLD, str(self.state)]
            self._holder = self._network.start(*command, stdout=subprocess.PIPE, text=True)
            assert self._holder.stdout is not None
            assert self._holder.stdout.readline() == "up\n"
        return self.state

    def close(self) -> None:
        assert self._holder is not None
        self._holder.kill()
        self._holder.wait()
        _until_left(self.state)
        here("clean", "--state", str(self.state))
        self._network.states.add(State(self.state).identity())

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture(scope="session")
def joined_state(network: Network, far: Network) -> Iterator[Callable[[Network], Path]]:
    """A state whose supervisor is there already, as it is for whoever begins a second run: one in each network.

    A supervisor, signer and recorder of its own take a third of what a run costs.
    """
    joined: dict[str, Joined] = {}

    def held(where: Network) -> Path:
        if where.name not in joined:
            joined[where.name] = Joined(where)
        return joined[where.name].held()

    try:
        yield held
        for one in joined.values():
            one.close()
    finally:
        for one in joined.values():
            one.remove()


def _until_left(state: Path) -> None:
    """Its supervisor has seen its last client go."""
    deadline = time.monotonic() + 30
    while (state / "run" / "control.sock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _mitmsec(network: Network, backend: str, *, unread: bool) -> Iterator[Mitmsec]:
    folder = Path(tempfile.mkdtemp(prefix="mitmsec-state-"))
    folder.chmod(0o755)
    tool = Mitmsec(network, folder / "state", backend, unread=unread)
    try:
        yield tool
        here("clean", "--state", str(tool.state))
    finally:
        with contextlib.suppress(FileNotFoundError):  # nothing was begun
            network.states.add(State(tool.state).identity())
        shutil.rmtree(folder, ignore_errors=True)


def status_of(mitmsec: Mitmsec) -> control.StatusAnswer:
    """What the supervisor says of its sessions and processes."""
    return asked(mitmsec, control.StatusQuestion())  # type: ignore[no-any-return]


def asked(mitmsec: Mitmsec, question: Message) -> Any:
    """The supervisor's answer."""
    channel = Channel(control.connect(mitmsec.state / "run" / "control.sock"), control.FROM_SUPERVISOR)
    try:
        answer = channel.exchange(question, timeout_s=60)
    finally:
        channel.close()
    assert answer is not None
    return answer[0]


@pytest.fixture
def resolver_conf(network: Network, tmp_path: Path) -> Iterator[None]:
    """RESOLVER is named in /etc/resolv.conf for all that run in this network."""
    (tmp_path / "resolv.conf").write_text(f"nameserver {RESOLVER}\noptions timeout:2 attempts:1\n")
    mount = ["nsenter", f"--mount=/proc/{network.holder}/ns/mnt"]
    subprocess.run([*mount, "mount", "--bind", str(tmp_path / "resolv.conf"), "/etc/resolv.conf"], check=True)
    try:
        yield
    finally:
        subprocess.run([*mount, "umount", "/etc/resolv.conf"], check=True)


@pytest.fixture
def resolver(network: Network, resolver_conf: None) -> Iterator[None]:
    """A resolver of our own."""
    table = json.dumps(
        {"plain.zone": [V4], "origin.zone": [V4], "other.zone": [BARE], "lie.zone": [V4], "long.zone": [BARE]}
    )
    server = network.start(
        *names_stage.PYTHON, names_stage.NAME_SERVER, RESOLVER, table, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "up\n"
    try:
        yield
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def speaker(network: Network) -> Iterator[str]:
    """Somebody on V4 and BARE who speaks first, and says nothing that is known; the port."""
    servers = [
        network.start(*names_stage.PYTHON, names_stage.SPEAKER, at, "7070", stdout=subprocess.PIPE, text=True)
        for at in (V4, BARE)
    ]
    for server in servers:
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
    yield "7070"
    for server in servers:
        server.kill()
        server.wait()
