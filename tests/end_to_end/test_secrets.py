"""The issuing key is in the signer, a service's in the worker, neither anywhere else; and who has loaded what."""

from __future__ import annotations

import ctypes
import os
import platform
import secrets
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from client_stage import Client, client
from conftest import V4, Mitmsec, Network, asked, status_of
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from enterprise import certified, root
from keyed_stage import keyed
from softhsm import SoftHsm, needs_softhsm
from test_deaths import until_recorded

from mitmsec.audit.packing import Packing
from mitmsec.audit.store import FILE_NAME as LOG
from mitmsec.service import control
from mitmsec_redirect import bpf

pytestmark = pytest.mark.root
ROLES = ("supervisor", "signer", "recorder", "gate", "worker", "front-end")


def spellings(key: ec.EllipticCurvePrivateKey) -> list[bytes]:
    """The scalar as it may stand in memory: big-endian, little-endian (OpenSSL's limbs on this machine), DER, PEM."""
    scalar = key.private_numbers().private_value.to_bytes(32, "big")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return [scalar, scalar[::-1], pem.splitlines()[2]]


def holds(pid: int, needles: list[bytes]) -> bool:
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            if "r" not in line.split()[1] or end > 1 << 63:
                continue
            try:
                content = os.pread(memory.fileno(), end - start, start)
            except OSError:
                continue
            if any(needle in content for needle in needles):
                return True
    return False


def written_with(needle: bytes, *places: Path) -> list[Path]:
    """The files in and below these places that hold it; of the log, whose events lie packed, what it says."""
    files = [file for place in places for file in (place.rglob("*") if place.is_dir() else [place]) if file.is_file()]
    return [file for file in files if needle in read(file) or (file.name == LOG and needle in said_by(file))]


def read(file: Path) -> bytes:
    """Of a recorder that is about to end, SQLite's own files vanish, their content in the database."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        if not file.name.endswith(("-wal", "-shm")):
            raise
        return file.with_name(file.name[: -len("-wal")]).read_bytes()


def said_by(log: Path) -> bytes:
    packing = Packing()
    with closing(sqlite3.connect(log)) as conn:
        return b"".join(packing.unpacked(frame) for (frame,) in conn.execute("SELECT envelope FROM events"))


BYPASS = '[[rule]]\nname = "bank"\nhost = ["bank.test"]\naction = "bypass"\n'


def test_the_issuing_key_is_only_in_the_signer_and_what_a_bypassed_flow_says_is_nowhere(
    origin: Network, mitmsec: Mitmsec, tmp_path: Path
) -> None:
    """What a decrypted flow says is in the worker, in the log and, with its keys, in the capture."""
    bypassed, decrypted = (f"/{secrets.token_hex(16)}" for _ in range(2))
    capture = tmp_path / "run.pcapng"
    with client(mitmsec, "open", rules=BYPASS, capture=capture) as program:
        assert "Test Origins nginx" in program.tries("bank.test", bypassed)
        assert "mitmsec issuing" in program.tries(path=decrypted)
        key = serialization.load_pem_private_key((mitmsec.state / "ca" / "issuing.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        until_recorded(mitmsec, 1)
        status = program.status()
        ours = [(role, pid) for role, pid, _ in status.processes]
        ours += [("supervisor", status.supervisor), ("front-end", program.run.pid)]
        with_key = {(role, holds(pid, spellings(key))) for role, pid in ours}
        with_bypassed = [role for role, pid in ours if holds(pid, [bypassed.encode()])]
        with_decrypted = {role for role, pid in ours if holds(pid, [decrypted.encode()])}
        program.end()
    assert with_key == {(role, role == "signer") for role in ROLES}
    assert with_bypassed == []
    assert {"worker"} <= with_decrypted <= {"worker", "recorder", "supervisor", "front-end"}
    assert written_with(bypassed.encode(), mitmsec.state, capture) == []
    assert mitmsec.state / "log" / LOG in written_with(decrypted.encode(), mitmsec.state)
    words = ("tshark", "-r", str(capture), "-Y", "http.request", "-T", "fields", "-e", "http.request.uri")
    readable = subprocess.run(words, capture_output=True, text=True, check=True)
    assert readable.stdout.split() == [decrypted]  # by the keys in the capture


@needs_softhsm
@pytest.mark.checklist("K2")
def test_a_key_in_a_token_signs_and_is_in_no_other_process_than_the_signer(
    origin: Network, mitmsec: Mitmsec, softhsm: SoftHsm, tmp_path: Path
) -> None:
    """SoftHSM is a library in that process; a real token would not let the key come that far."""
    above = root()
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(above.certificate.public_key())  # type: ignore[arg-type]
    sub = certified("mitmsec issuing, in a token", above, limit=None, more=[(by, False)])
    assert isinstance(sub.key, ec.EllipticCurvePrivateKey)
    softhsm.bring(sub.key, "issuing")
    (tmp_path / "ca.pem").write_bytes(sub.pem + above.pem)
    words = ("import", str(tmp_path / "ca.pem"), "--accept-broad", "--state", str(mitmsec.state))
    done = subprocess.run(
        mitmsec.command("ca", *words, *softhsm.options("issuing")),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    needles = spellings(sub.key)
    with client(mitmsec, "open") as program:
        assert "mitmsec issuing, in a token" in program.tries()
        status = program.status()
        found = {(role, holds(pid, needles)) for role, pid, _ in status.processes}
        found |= {("supervisor", holds(status.supervisor, needles)), ("front-end", holds(program.run.pid, needles))}
        program.end()
    assert {role for role, holding in found if holding} <= {"signer"}
    assert {role for role, _ in found} == set(ROLES)


def test_a_services_key_is_in_the_worker_and_nowhere_else(network: Network, mitmsec: Mitmsec) -> None:
    """The front-end has checked that key and certificate belong together, and the supervisor hands it on: unread."""
    with keyed(mitmsec, network, V4) as shop:
        assert shop.fetch(network.inside()).endswith("HTTP/2.0")
        key = serialization.load_pem_private_key(shop.key_pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        needles = spellings(key)
        status = status_of(mitmsec)
        found = {(role, holds(pid, needles)) for role, pid, _ in status.processes}
        found |= {("supervisor", holds(status.supervisor, needles)), ("front-end", holds(shop.run.pid, needles))}
    assert found == {(role, role == "worker") for role in ROLES}


ELSEWHERE = {
    "supervisor": "mitmproxy OpenSSL cryptography sqlite3 mitmsec.gate mitmsec.engine mitmsec.capture mitmsec_addons"
    " mitmsec_certs",
    "gate": "mitmproxy OpenSSL cryptography sqlite3 mitmsec.engine mitmsec.capture mitmsec_addons mitmsec_certs psutil"
    " pydivert",
    "signer": "mitmproxy OpenSSL sqlite3 mitmsec.gate mitmsec.engine mitmsec.capture mitmsec_addons mitmsec_redirect"
    " psutil pydivert",
    "worker": "mitmsec_certs.signer mitmsec_certs.keystore mitmsec.gate mitmsec_redirect sqlite_utils psutil pydivert",
    "recorder": "mitmproxy OpenSSL mitmsec.gate mitmsec.engine mitmsec_addons mitmsec_certs"
    " mitmsec_redirect psutil pydivert",
}


def test_each_process_has_loaded_only_what_its_row_allows_and_a_stranger_runs_nothing_of_ours_and_is_recorded(
    origin: Network, mitmsec: Mitmsec
) -> None:
    """The stranger, who is outside of the command, connects a hundred times elsewhere, and then to the gate itself."""
    statistics = bpf.enable_stats()
    try:
        with client(mitmsec, "open") as program:
            (session,) = program.status().sessions
            nothing = run_count(session[2])
            assert "mitmsec issuing" in program.tries()
            own = run_count(session[2])
            stranger = (
                "import socket\nfor _ in range(100):\n"
                "    socket.create_connection(('203.0.113.10', 443), 5).getpeername()\n"
            )
            subprocess.run(origin.inside(sys.executable, "-c", stranger), check=True)
            after = run_count(session[2])
            who_has_loaded_what(mitmsec, program)
            a_strangers_connection_to_the_gate_is_reset(origin, program)
            program.end()
    finally:
        os.close(statistics)
    assert own > nothing
    assert after == own
    assert "stranger" in [event["what"] for event in mitmsec.of_kind("fault")]


def who_has_loaded_what(mitmsec: Mitmsec, program: Client) -> None:
    status = program.status()
    roles = {pid: role for role, pid, _ in status.processes} | {status.supervisor: "supervisor"}
    loaded = {pid: asked(mitmsec, control.ModulesOf(pid)).modules for pid in roles}
    assert set(roles.values()) == set(ELSEWHERE)
    for pid, modules in loaded.items():
        assert len(modules) > 50
        theirs = tuple(ELSEWHERE[roles[pid]].split())
        wrong = [name for name in modules if name in theirs or name.startswith(tuple(f"{one}." for one in theirs))]
        assert wrong == [], roles[pid]


def a_strangers_connection_to_the_gate_is_reset(origin: Network, program: Client) -> None:
    port = gate_port(program.pid_of("gate"))
    knock = f"import socket\ns = socket.create_connection(('127.0.0.1', {port}), 5)\ns.settimeout(5)\ns.recv(1)\n"
    done = subprocess.run(origin.inside(sys.executable, "-c", knock), capture_output=True, text=True, check=False)
    assert "ConnectionResetError" in done.stderr


PROG_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD, PROG_QUERY = 13, 15, 16
INFO_BYTES, NAME_OFFSET, RUNS_OFFSET = 208, 64, 200
QUERY = struct.Struct("=IIIIQI")  # cgroup, attach type, two kinds of flags, where ids go, how many have room
PROGRAMS_LIMIT = 64


def run_count(cgroup: str) -> int:
    """How often programs of ours on this cgroup have run so far: from the kernel's own listing."""
    total = 0
    for identity in programs_on(cgroup):
        info = ctypes.create_string_buffer(INFO_BYTES)
        program = _bpf(PROG_GET_FD_BY_ID, struct.pack("=I", identity))
        try:
            _bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", program, INFO_BYTES, ctypes.addressof(info)))
        finally:
            os.close(program)
        if info.raw[NAME_OFFSET:].startswith(b"mitmsec_"):
            total += struct.unpack_from("=Q", info.raw, RUNS_OFFSET)[0]
    return total


def programs_on(cgroup: str) -> list[int]:
    """Ids of the programs on it, of every type that we attach."""
    found: list[int] = []
    folder = os.open(cgroup, os.O_RDONLY)
    try:
        for attach in set(bpf.Attach) - {bpf.Attach.SK_LOOKUP}:  # that one is a network namespace's
            ids = (ctypes.c_uint32 * PROGRAMS_LIMIT)()
            query = QUERY.pack(folder, attach, 0, 0, ctypes.addressof(ids), PROGRAMS_LIMIT)
            _bpf(PROG_QUERY, query)
            found += [identity for identity in ids if identity]
    finally:
        os.close(folder)
    assert found
    return found


def _bpf(command: int, attr: bytes) -> int:
    buffer = ctypes.create_string_buffer(attr, 152)
    result = _libc.syscall(bpf.SYSCALL_NUMBER[platform.machine()], command, buffer, 152)
    if result < 0:
        raise OSError(ctypes.get_errno(), "bpf")
    return int(result)


_libc = ctypes.CDLL(None, use_errno=True)


def gate_port(pid: int) -> int:
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(entry)
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            return int(fields[1].split(":")[1], 16)
    raise AssertionError("the gate does not listen")
