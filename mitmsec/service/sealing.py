"""The secret that opens a sealed issuing key, kept by the operating system: a credential of systemd.

    ca seal     random secret ── systemd-creds encrypt ──► STATE/ca/seal.cred; the keys are encrypted under the secret
    each start  seal.cred ── systemd-creds decrypt ──► memfd ── unread by the supervisor ──► signer

systemd encrypts a credential with a key of this machine, and with its TPM2 where there is one, so the files of STATE
are worth nothing on another machine, or in a backup. Who is root here can have it opened, as the supervisor does.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator

from mitmsec.service.seal_keeper import SealFailed, SealKeeper
from mitmsec.service.state import State

SEAL = "seal.cred"  # as in mitmsec_certs.ca_folder, which the supervisor does not load
NAME = "mitmsec-ca"  # a credential opens under its own name only
PROGRAM = "systemd-creds"
DEADLINE_S = 20.0
SECRET_BYTES = 32


class SystemdCredentials:
    """A SealKeeper."""

    def kept(self, secret: bytes) -> bytes:
        """`secret` as it may lie on a disk. Raises SealFailed."""
        return _run(["encrypt", f"--name={NAME}", "-", "-"], secret)

    def opened(self, credential: bytes) -> bytes:
        """The secret in what `kept` made on this machine. Raises SealFailed."""
        return _run(["decrypt", f"--name={NAME}", "-", "-"], credential)


KEEPER: SealKeeper = SystemdCredentials()


def new_seal() -> tuple[bytes, bytes]:
    """A new credential, and the secret that it holds. Raises SealFailed."""
    secret = os.urandom(SECRET_BYTES).hex().encode()
    return KEEPER.kept(secret), secret


def is_sealed(state: State) -> bool:
    return (state.ca / SEAL).exists()


def secret_of(state: State) -> bytes | None:
    """What opens the keys of `state`, or None where they are in clear. Raises SealFailed."""
    return KEEPER.opened((state.ca / SEAL).read_bytes()) if is_sealed(state) else None


@contextlib.contextmanager
def descriptors(state: State) -> Iterator[tuple[int, ...]]:
    """A memory file with what opens the keys, read by nobody here; none where they are in clear. Raises SealFailed."""
    if not is_sealed(state):
        yield ()
        return
    descriptor = os.memfd_create("seal", os.MFD_CLOEXEC)
    try:
        _run(["decrypt", f"--name={NAME}", str(state.ca / SEAL), "-"], stdout=descriptor)
        yield (descriptor,)
    finally:
        os.close(descriptor)


def _run(words: list[str], given: bytes = b"", *, stdout: int = subprocess.PIPE) -> bytes:
    try:
        done = subprocess.run(
            [PROGRAM, *words], input=given, stdout=stdout, stderr=subprocess.PIPE, timeout=DEADLINE_S, check=False
        )
    except FileNotFoundError:
        raise SealFailed(f"{PROGRAM} is not on this machine (systemd 250 and later have it)") from None
    except subprocess.TimeoutExpired:
        raise SealFailed(f"{PROGRAM} did not answer within {DEADLINE_S:.0f} s") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise SealFailed(f"{PROGRAM} {words[0]}: {said[-1] if said else f'status {done.returncode}'}")
    return done.stdout or b""
