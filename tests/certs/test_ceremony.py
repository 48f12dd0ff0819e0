"""What is done with a root's key, and what is left of it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12

from mitmsec_certs.authority import spki_of, validity_of
from mitmsec_certs.ca_folder import KeystoreRefused
from mitmsec_certs.ceremony import MEMORY_LIMIT_BYTES, CeremonyFailed, in_child, lasting, passphrase_flaw, signed
from mitmsec_certs.constraint_extension import constraints_of
from mitmsec_certs.constraints import UNCONSTRAINED, written
from mitmsec_certs.profile import CA_LIFETIME_S, DAY_S, ROOT_LIFETIME_S

NOW_S = int(time.time())
PASSPHRASE = "correct horse battery"
LIMIT = written(["corp.example"], ["hr.corp.example"])


def fresh() -> bytes:
    return spki_of(ec.generate_private_key(ec.SECP256R1()).public_key())


@pytest.fixture(scope="module")
def made() -> tuple[bytes, bytes, bytes, bytes]:
    key = fresh()
    return key, *lasting(key, "host", NOW_S, LIMIT, PASSPHRASE)


def test_a_lasting_root_signs_an_issuing_ca_of_a_year_at_most_under_its_own_constraints(
    made: tuple[bytes, bytes, bytes, bytes],
) -> None:
    key, root_pem, issuing_pem, _ = made
    root, issuing = map(x509.load_pem_x509_certificate, (root_pem, issuing_pem))
    issuing.verify_directly_issued_by(root)
    assert spki_of(issuing.public_key()) == key
    assert constraints_of(root) == constraints_of(issuing) == LIMIT
    span_s = validity_of(issuing).not_after_s - validity_of(issuing).not_before_s
    assert span_s <= CA_LIFETIME_S
    assert validity_of(root).not_after_s - validity_of(root).not_before_s == ROOT_LIFETIME_S


def test_the_roots_file_opens_with_the_passphrase_alone_also_for_openssl(
    made: tuple[bytes, bytes, bytes, bytes], tmp_path: Path
) -> None:
    """So a root can be used without mitmsec; the key is encrypted with AES-256 under many rounds."""
    _, root_pem, _, sealed = made
    (tmp_path / "root.p12").write_bytes(sealed)
    shown = subprocess.run(
        ["openssl", "pkcs12", "-in", "root.p12", "-passin", f"pass:{PASSPHRASE}", "-info", "-noenc"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "PBES2, PBKDF2, AES-256-CBC, Iteration 600000, PRF hmacWithSHA256" in shown.stderr
    assert "BEGIN PRIVATE KEY" in shown.stdout
    wrong = subprocess.run(
        ["openssl", "pkcs12", "-in", "root.p12", "-passin", "pass:another", "-noenc"], cwd=tmp_path, capture_output=True
    )
    assert wrong.returncode != 0
    assert x509.load_pem_x509_certificate(root_pem).public_bytes(serialization.Encoding.DER) not in sealed


def test_a_root_that_is_brought_back_signs_the_next_issuing_ca(made: tuple[bytes, bytes, bytes, bytes]) -> None:
    _, root_pem, first_pem, sealed = made
    key = fresh()
    again, second_pem = signed(key, sealed, PASSPHRASE, "host", NOW_S + 300 * DAY_S)
    assert again == root_pem
    second = x509.load_pem_x509_certificate(second_pem)
    second.verify_directly_issued_by(x509.load_pem_x509_certificate(root_pem))
    assert spki_of(second.public_key()) == key
    assert constraints_of(second) == LIMIT
    assert second.subject != x509.load_pem_x509_certificate(first_pem).subject
    assert validity_of(second).not_after_s > validity_of(x509.load_pem_x509_certificate(first_pem)).not_after_s


def test_an_issuing_ca_never_outlives_its_root(made: tuple[bytes, bytes, bytes, bytes]) -> None:
    _, root_pem, _, sealed = made
    end_s = validity_of(x509.load_pem_x509_certificate(root_pem)).not_after_s
    _, late = signed(fresh(), sealed, PASSPHRASE, "host", end_s - 10 * DAY_S)
    assert validity_of(x509.load_pem_x509_certificate(late)).not_after_s == end_s
    with pytest.raises(CeremonyFailed, match="root has ended"):
        signed(fresh(), sealed, PASSPHRASE, "host", end_s + 1)


def test_another_passphrase_another_file_and_another_key_are_told_apart_from_success(
    made: tuple[bytes, bytes, bytes, bytes],
) -> None:
    sealed = made[3]
    for file, passphrase in ((sealed, "correct horse battery."), (b"", PASSPHRASE), (sealed[:-9], PASSPHRASE)):
        with pytest.raises(CeremonyFailed, match="cannot be opened"):
            signed(fresh(), file, passphrase, "host", NOW_S)
    key = ec.generate_private_key(ec.SECP384R1())
    secret = serialization.BestAvailableEncryption(PASSPHRASE.encode())
    with pytest.raises(CeremonyFailed, match="does not hold a root"):
        signed(fresh(), pkcs12.serialize_key_and_certificates(None, key, None, None, secret), PASSPHRASE, "h", NOW_S)


@pytest.mark.parametrize("word", ["short", "eleven char", "x" * 1025, "with a line\nbreak in it"])
def test_a_passphrase_that_cannot_guard_a_root_is_refused(word: str) -> None:
    assert passphrase_flaw(word) is not None


def test_a_passphrase_may_be_in_any_script() -> None:
    assert passphrase_flaw("ein Schlüssel für später") is None
    sealed = lasting(fresh(), "host", NOW_S, UNCONSTRAINED, "ein Schlüssel für später")[2]
    signed(fresh(), sealed, "ein Schlüssel für später", "host", NOW_S)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_child_works_as_the_user_that_it_is_told() -> None:
    (said,) = in_child(lambda: [f"{os.getresuid()} {os.getresgid()} {os.getgroups()}".encode()], user=(12345, 54321))
    assert said == b"(12345, 12345, 12345) (54321, 54321, 54321) []"


def dumps() -> list[bytes]:
    """Whether the kernel would write what this process holds into a file, and how much of it."""
    dumpable = ctypes.CDLL(None).prctl(3)  # PR_GET_DUMPABLE
    return [str(dumpable).encode(), str(resource.getrlimit(resource.RLIMIT_CORE)[0]).encode()]


@pytest.mark.checklist("K2")
def test_nothing_of_a_child_gets_into_a_core_dump() -> None:
    assert in_child(dumps) == [b"0", b"0"]
    if os.geteuid() == 0:
        assert in_child(dumps, user=(65534, 65534)) == [b"0", b"0"]


def test_what_a_child_refuses_is_told_in_its_words_and_what_breaks_it_is_an_error() -> None:
    def refuses() -> list[bytes]:
        raise KeystoreRefused("this file is not yours")

    def breaks() -> list[bytes]:
        raise RuntimeError("no entropy")

    with pytest.raises(CeremonyFailed, match="this file is not yours"):
        in_child(refuses)
    with pytest.raises(OSError, match="root key failed"):
        in_child(breaks)


def test_what_the_machine_refuses_a_child_is_told_as_it_is_and_an_interrupt_of_both_by_the_parent_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def is_full() -> list[bytes]:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    with pytest.raises(OSError, match="No space left") as told:
        in_child(is_full)
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(tmp_path))

    def interrupted() -> list[bytes]:
        raise KeyboardInterrupt

    with pytest.raises(OSError, match="failed"):
        in_child(interrupted)
    assert capfd.readouterr().err == ""


def test_parts_of_any_content_come_back_as_they_were() -> None:
    parts = [b"", b"\x00" * 7, hashes.SHA256().name.encode() * 1000]
    assert in_child(lambda: parts) == parts


def test_who_has_much_memory_already_can_have_work_done_beside_it() -> None:
    """The limit is of what the work takes; a fork begins with all that its parent has."""
    with mmap.mmap(-1, MEMORY_LIMIT_BYTES + (1 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS):
        assert in_child(lambda: [bytes(1 << 24)[:4]]) == [bytes(4)]
        with pytest.raises(OSError, match="failed"):
            in_child(lambda: [bytes(MEMORY_LIMIT_BYTES + (1 << 26))[:4]])
