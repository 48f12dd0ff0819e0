"""What is done with a root's key, in a process that ends with it.

    automatic   root and issuing certificate; the key ends with the process
    lasting     the same, and root and key as PKCS #12 under a passphrase, for a place that is not this machine
    signed      another issuing certificate by a root that was brought back for it

A forked child makes or opens the root's key, signs, answers with certificates and is gone; the kernel clears its pages
before anybody else gets them. That is as destroyed as a key can be from Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import secrets
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12

from mitmsec_certs.authority import empty_list, make_issuing, make_root, serial_of, validity_of
from mitmsec_certs.ca_folder import PEM, KeystoreRefused
from mitmsec_certs.constraint_extension import constraints_of
from mitmsec_certs.constraints import Constraints
from mitmsec_certs.profile import IssuingProfile, Place, ca_profiles, issuing_profile, lasting_root_profile

ANSWER_LIMIT_BYTES = 128 * 1024
KDF_ROUNDS = 600_000  # PBKDF2 with HMAC-SHA-256: what OWASP asks of passwords that an attacker may try offline
PASSPHRASE_LIMIT_CHARACTERS = 1024
PASSPHRASE_LEAST_CHARACTERS = 12
CPU_LIMIT_S = 60  # of its own time; the work takes a second
MEMORY_LIMIT_BYTES = 1 << 30
PR_SET_DUMPABLE = 4

type RootKeySource = Callable[[], ec.EllipticCurvePrivateKey]


class CeremonyFailed(Exception):
    """What the caller gave cannot be used: the root's file, its passphrase. The text says why."""


class RootFile(CeremonyFailed):
    """The root's file cannot be opened: it is another file, or the passphrase is another."""


def p384() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def automatic(public_key: bytes, host: str, now_s: int, new_root_key: RootKeySource = p384) -> tuple[bytes, bytes]:
    """Root and issuing certificate for `public_key` (SPKI, DER), as PEM; the root's list follows the latter.

    Raises OSError.
    """

    def work() -> list[bytes]:
        here = place(host, now_s)
        root_profile, issuing = ca_profiles(here.host, here.tag, here.date, now_s)
        root_key = new_root_key()
        root = make_root(root_profile, root_key, _serial())
        return [_pem(root), _issued(issuing, root, root_key, public_key)]

    root, issuing = in_child(work)
    return root, issuing


def lasting(
    public_key: bytes, host: str, now_s: int, constraints: Constraints, passphrase: str
) -> tuple[bytes, bytes, bytes]:
    """As `automatic`, and the root's file. Raises OSError."""

    def work() -> list[bytes]:
        here, root_key = place(host, now_s), p384()
        root = make_root(lasting_root_profile(here, now_s, constraints), root_key, _serial())
        issuing = _signed(root, root_key, public_key, here, now_s)
        return [_pem(root), issuing, _sealed(root, root_key, passphrase)]

    root, issuing, sealed = in_child(work)
    return root, issuing, sealed


def signed(public_key: bytes, root_file: bytes, passphrase: str, host: str, now_s: int) -> tuple[bytes, bytes]:
    """The root's certificate and a new issuing one for `public_key` (SPKI, DER), as PEM. Raises CeremonyFailed."""

    def work() -> list[bytes]:
        root_key, root = _opened(root_file, passphrase)
        return [_pem(root), _signed(root, root_key, public_key, place(host, now_s), now_s)]

    root, issuing = in_child(work)
    return root, issuing


def rehearsed(root_file: bytes, passphrase: str, now_s: int) -> bytes:
    """The root's certificate (PEM) of a file that `signed` will take, before anything is prepared for that.

    Raises CeremonyFailed.
    """

    def work() -> list[bytes]:
        _, root = _opened(root_file, passphrase)
        _profile(root, place("", now_s), now_s)
        return [_pem(root)]

    return in_child(work)[0]


def _signed(
    root: x509.Certificate, root_key: ec.EllipticCurvePrivateKey, public_key: bytes, here: Place, now_s: int
) -> bytes:
    return _issued(_profile(root, here, now_s), root, root_key, public_key)


def _profile(root: x509.Certificate, here: Place, now_s: int) -> IssuingProfile:
    """The root's own constraints are the issuing CA's too: not every verifier reads those of a root."""
    try:
        return issuing_profile(here, now_s, validity_of(root), constraints_of(root))
    except ValueError as error:
        raise CeremonyFailed(str(error)) from None


def _issued(
    profile: IssuingProfile, root: x509.Certificate, root_key: ec.EllipticCurvePrivateKey, public_key: bytes
) -> bytes:
    """The issuing CA's certificate (PEM), and below it the root's revocation list, which nobody can make later."""
    issuing = make_issuing(profile, root, root_key, _p256(public_key), _serial(), has_list=True)
    revoked = x509.load_der_x509_crl(empty_list(root_key, root, validity_of(root)))
    return _pem(issuing) + revoked.public_bytes(PEM)


def _p256(public_key: bytes) -> ec.EllipticCurvePublicKey:
    key = serialization.load_der_public_key(public_key)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


# --- the root's file --------------------------------------------------------------------------------------------------
def _sealed(root: x509.Certificate, key: ec.EllipticCurvePrivateKey, passphrase: str) -> bytes:
    builder = serialization.PrivateFormat.PKCS12.encryption_builder()
    encryption = (
        builder.kdf_rounds(KDF_ROUNDS)
        .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
        .hmac_hash(hashes.SHA256())
        .build(passphrase.encode())
    )
    return pkcs12.serialize_key_and_certificates(b"mitmsec root", key, root, None, encryption)


def _opened(sealed: bytes, passphrase: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        key, root, _ = pkcs12.load_key_and_certificates(sealed, passphrase.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise RootFile("the root's file cannot be opened: the passphrase is another, or it is another file") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or root is None or key.public_key() != root.public_key():
        raise RootFile("the file does not hold a root of `mitmsec ca init` with its key")
    return key, root


def passphrase_flaw(passphrase: str) -> str | None:
    """Why it cannot guard a root; None where it can."""
    if len(passphrase) < PASSPHRASE_LEAST_CHARACTERS:
        return f"the passphrase has to have {PASSPHRASE_LEAST_CHARACTERS} characters or more"
    if len(passphrase) > PASSPHRASE_LIMIT_CHARACTERS or not passphrase.isprintable():
        return f"the passphrase may have {PASSPHRASE_LIMIT_CHARACTERS} characters, all of them printable"
    return None


# --- a process of its own ---------------------------------------------------------------------------------------------
def in_child(
    work: Callable[[], list[bytes]],
    *,
    user: tuple[int, int] | None = None,
    folder: Path | None = None,
    answer_limit_bytes: int = ANSWER_LIMIT_BYTES,
) -> list[bytes]:
    """Run `work` in a forked process that ends with it, in `folder`, as `user` (uid, gid), where these are given.

    The user need not be able to reach the folder. What the process knows gets into no core dump, and a file that was
    made to take for ever, or all memory, to open takes CPU_LIMIT_S, and MEMORY_LIMIT_BYTES beside what we have.

    Raises CeremonyFailed with the words of what `work` refused, OSError for whatever else fails in there.
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(ours)
            if folder is not None:
                os.chdir(folder)
            if user is not None:
                _become(*user)
            _limit()
            with open(theirs, "wb") as answer:
                status = _answered(answer.write, work)
        except KeyboardInterrupt:
            pass  # whoever has begun us is told of it, too
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)  # no cleanup of the parent's: its loop and sockets are not ours
    os.close(theirs)
    with open(ours, "rb") as pipe:
        parts = _parts(pipe.read(answer_limit_bytes))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == _FAILED:
        raise CeremonyFailed(parts[0].decode())
    if status == _BROKEN:
        number, words, file = (part.decode() for part in parts)
        raise OSError(int(number), words, file or None)
    if status != 0:
        raise OSError("the process that makes the root key failed")
    return parts


_FAILED, _BROKEN = 3, 4


def _answered(write: Callable[[bytes], object], work: Callable[[], list[bytes]]) -> int:
    """The status to end with."""
    try:
        parts, status = work(), 0
    except (CeremonyFailed, KeystoreRefused) as error:
        parts, status = [str(error).encode()], _FAILED
    except OSError as error:
        told = (error.errno or 0, error.strerror or error, error.filename or "")
        parts, status = [str(each).encode() for each in told], _BROKEN
    for part in parts:
        write(len(part).to_bytes(4) + part)
    return status


def _parts(answer: bytes) -> list[bytes]:
    parts: list[bytes] = []
    while answer:
        size_bytes = int.from_bytes(answer[:4])
        parts.append(answer[4 : 4 + size_bytes])
        answer = answer[4 + size_bytes :]
    return parts


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _limit() -> None:
    keep_undumped()
    memory_bytes = _data_bytes() + MEMORY_LIMIT_BYTES
    for what, most in ((resource.RLIMIT_CPU, CPU_LIMIT_S), (resource.RLIMIT_DATA, memory_bytes)):
        hard = resource.getrlimit(what)[1]
        at_most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (at_most, at_most))


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process already: a fork has its parent's."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    except OSError:  # in a jail, whose parent has little
        return 0


def keep_undumped() -> None:
    """What this process holds from now on gets into no core dump, and nobody of our own user can trace it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)


def place(host: str, now_s: int) -> Place:
    """What a CA that is made here and now is called after."""
    return Place(host=host, tag=secrets.token_hex(4), date=datetime.fromtimestamp(now_s, UTC).date().isoformat())


def _serial() -> int:
    return serial_of(secrets.token_bytes(16))


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(PEM)
