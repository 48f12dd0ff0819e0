"""The CA's files: made once, private, consistent; and no root key is left anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mitmsec_certs.keystore import KeystoreRefused, open_keystore
from mitmsec_certs.profile import CA_LIFETIME_S, DAY_S

NOW_S = int(time.time())

OPENER = """
import sys, time
from pathlib import Path
from mitmsec_certs.keystore import open_keystore
sys.stdin.readline()
print(open_keystore(Path(sys.argv[1]), "racer", int(time.time())).created)
"""

KEEPER = """
import sys, time
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric import ec
from mitmsec_certs.keystore import open_keystore

def known_root_key():
    key = ec.generate_private_key(ec.SECP384R1())
    Path(sys.argv[2]).write_text(hex(key.private_numbers().private_value))
    return key

keystore = open_keystore(Path(sys.argv[1]), "keeper", int(time.time()), new_root_key=known_root_key)
print("ready", flush=True)
sys.stdin.readline()
"""


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_the_first_open_makes_the_ca_and_the_second_reads_it(tmp_path: Path) -> None:
    first = open_keystore(tmp_path / "ca", "host", NOW_S)
    second = open_keystore(tmp_path / "ca", "host", NOW_S)
    assert (first.created, second.created) == (True, False)
    assert first.root_pem == second.root_pem
    assert first.authority.public_key == second.authority.public_key


def test_only_the_owner_can_read_the_key(tmp_path: Path) -> None:
    """Whatever the umask is; and no temporary file is left."""
    before = os.umask(0)
    try:
        open_keystore(tmp_path / "ca", "host", NOW_S)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "ca") == 0o700
    assert mode_of(tmp_path / "ca" / "issuing.key") == 0o600
    assert {path.name for path in (tmp_path / "ca").iterdir()} == {
        *("lock", "issuing.key", "issuing.pem", "about.json", "root.pem")
    }


def test_two_machines_have_two_cas_that_can_be_told_apart(tmp_path: Path) -> None:
    roots = [
        x509.load_pem_x509_certificate(open_keystore(tmp_path / name, "host", NOW_S).root_pem.encode())
        for name in ("a", "b")
    ]
    assert roots[0].subject != roots[1].subject
    assert roots[0].public_key() != roots[1].public_key()


def test_processes_that_race_make_one_ca(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, str(tmp_path / "ca")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    answers = [racer.communicate("go\n", timeout=60)[0].strip() for racer in racers]
    assert sorted(answers) == ["False", "False", "False", "True"]
    assert not open_keystore(tmp_path / "ca", "host", NOW_S).created


def test_no_root_key_is_left_in_the_process_that_made_the_ca(tmp_path: Path) -> None:
    """Its memory is searched in both byte orders; the issuing key, which it keeps, shows that the search finds keys."""
    command = [sys.executable, "-c", KEEPER, str(tmp_path / "ca"), str(tmp_path / "scalar")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "ready\n"
        root_scalar = int((tmp_path / "scalar").read_text(), 16)
        key = serialization.load_pem_private_key((tmp_path / "ca" / "issuing.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        issuing_scalar = key.private_numbers().private_value
        assert memory_holds(keeper.pid, issuing_scalar, 32)
        assert not memory_holds(keeper.pid, root_scalar, 48)
        keeper.communicate("end\n", timeout=60)


def memory_holds(pid: int, scalar: int, size_bytes: int) -> bool:
    wanted = (scalar.to_bytes(size_bytes, "big"), scalar.to_bytes(size_bytes, "little"))
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, permissions, *_ = line.split()
            start, end = (int(word, 16) for word in span.split("-"))
            if permissions[0] != "r" or "[v" in line:
                continue
            memory.seek(start)
            content = memory.read(end - start)
            if any(bytes_ in content for bytes_ in wanted):
                return True
    return False


def test_a_failing_ceremony_leaves_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    def broken() -> ec.EllipticCurvePrivateKey:
        raise RuntimeError("no entropy")

    with pytest.raises(OSError, match="root key failed"):
        open_keystore(tmp_path / "ca", "host", NOW_S, new_root_key=broken)
    assert {path.name for path in (tmp_path / "ca").iterdir()} == {"lock"}
    assert open_keystore(tmp_path / "ca", "host", NOW_S).created


@pytest.mark.parametrize("left", [("issuing.key",), ("issuing.key", "issuing.pem"), ("issuing.key.new",)])
def test_what_a_crash_left_half_made_is_made_anew(tmp_path: Path, left: tuple[str, ...]) -> None:
    folder = tmp_path / "ca"
    folder.mkdir(mode=0o700)
    for name in left:
        (folder / name).write_text("half")
    assert open_keystore(folder, "host", NOW_S).created
    assert not list(folder.glob("*.new"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    open_keystore(tmp_path / "ca", "host", NOW_S)
    (tmp_path / "ca" / "issuing.key").chmod(mode)
    with pytest.raises(KeystoreRefused, match=r"issuing\.key: mode 06.*others can read.*clean --purge"):
        open_keystore(tmp_path / "ca", "host", NOW_S)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["issuing.key", "."])
def test_a_key_or_folder_of_another_user_is_refused(tmp_path: Path, name: str) -> None:
    open_keystore(tmp_path / "ca", "host", NOW_S)
    os.chown(tmp_path / "ca" / name, 12345, -1)
    with pytest.raises(KeystoreRefused, match="owned by uid 12345"):
        open_keystore(tmp_path / "ca", "host", NOW_S)


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca").chmod(0o770)
    with pytest.raises(KeystoreRefused, match="mode 0770"):
        open_keystore(tmp_path / "ca", "host", NOW_S)
    assert not list((tmp_path / "ca").iterdir())


def test_a_link_instead_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "ca").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeystoreRefused, match="not a folder"):
        open_keystore(tmp_path / "ca", "host", NOW_S)


def test_a_link_instead_of_the_key_is_refused(tmp_path: Path) -> None:
    open_keystore(tmp_path / "ca", "host", NOW_S)
    (tmp_path / "ca" / "issuing.key").rename(tmp_path / "moved.key")
    (tmp_path / "ca" / "issuing.key").symlink_to(tmp_path / "moved.key")
    with pytest.raises(KeystoreRefused, match=r"issuing\.key"):
        open_keystore(tmp_path / "ca", "host", NOW_S)


def test_a_pipe_instead_of_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    open_keystore(tmp_path / "ca", "host", NOW_S)
    (tmp_path / "ca" / "issuing.pem").unlink()
    os.mkfifo(tmp_path / "ca" / "issuing.pem")
    with pytest.raises(KeystoreRefused, match="not a regular file"):
        open_keystore(tmp_path / "ca", "host", NOW_S)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("issuing.key", b"", "not a private key"),
        ("issuing.key", b"\x00\xff" * 40, "not a private key"),
        ("issuing.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not a certificate"),
        ("root.pem", b"", "not a certificate"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    open_keystore(tmp_path / "ca", "host", NOW_S)
    (tmp_path / "ca" / name).write_bytes(content)
    with pytest.raises(KeystoreRefused, match=f"{name}: {words}"):
        open_keystore(tmp_path / "ca", "host", NOW_S)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    open_keystore(tmp_path / "ca", "host", NOW_S)
    (tmp_path / "ca" / "issuing.key").unlink()
    with pytest.raises(KeystoreRefused, match=r"issuing\.key: No such file"):
        open_keystore(tmp_path / "ca", "host", NOW_S)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    open_keystore(tmp_path / "ca", "host", NOW_S)
    command = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(tmp_path / "ca" / "issuing.key")]
    subprocess.run(command, check=True, capture_output=True)
    (tmp_path / "ca" / "issuing.key").chmod(0o600)
    with pytest.raises(KeystoreRefused, match="neither an elliptic curve key"):
        open_keystore(tmp_path / "ca", "host", NOW_S)


@pytest.mark.parametrize("name", ["issuing.key", "issuing.pem", "root.pem"])
def test_files_of_another_ca_are_refused(tmp_path: Path, name: str) -> None:
    open_keystore(tmp_path / "ca", "host", NOW_S)
    open_keystore(tmp_path / "other", "host", NOW_S)
    (tmp_path / "other" / name).replace(tmp_path / "ca" / name)
    with pytest.raises(KeystoreRefused, match="do not belong together"):
        open_keystore(tmp_path / "ca", "host", NOW_S)


def test_a_ca_that_has_ended_is_retired_and_a_new_one_made(tmp_path: Path) -> None:
    """Its root's certificate is kept, its key is not."""
    old = open_keystore(tmp_path / "ca", "host", NOW_S)
    key = (tmp_path / "ca" / "issuing.key").read_bytes()
    new = open_keystore(tmp_path / "ca", "host", NOW_S + CA_LIFETIME_S + 1)
    assert new.created
    assert new.root_pem != old.root_pem
    assert [path.read_text() for path in (tmp_path / "ca" / "retired").iterdir()] == [old.root_pem]
    assert all(key != path.read_bytes() for path in (tmp_path / "ca").rglob("*") if path.is_file())


def test_a_ca_that_ends_soon_says_so_and_still_serves(tmp_path: Path) -> None:
    store = open_keystore(tmp_path / "ca", "host", NOW_S)
    end_s = store.authority.validity.not_after_s
    assert not store.ends_soon(NOW_S)
    assert store.ends_soon(end_s - 13 * DAY_S)
    assert not open_keystore(tmp_path / "ca", "host", end_s - DAY_S).created


def test_a_clock_before_the_cas_beginning_is_an_error(tmp_path: Path) -> None:
    """It would make every leaf one from the future; a new CA would only be wrong again once the clock is right."""
    open_keystore(tmp_path / "ca", "host", NOW_S)
    with pytest.raises(KeystoreRefused, match="clock"):
        open_keystore(tmp_path / "ca", "host", NOW_S - 10 * DAY_S)
