"""Certificates and keys of services and of clients, read beside their policy without a key ever being in this process.

    key file ── sendfile ──► memory file ─────────────────────► supervisor ──► workers of the run
                                │    (the kernel copies; no byte passes through us)
                                └─► a fork reads it: is it a key, and the certificate's, and one that OpenSSL takes?
                                                     ── a sentence, or none

A PKCS#12 file is opened by such a fork, which lays the key into the memory file and says the certificates.

Who checks a policy may be the front-end of a run, which lives as long as its command does. A key that it had once read
would stand in its memory all that time.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mitmsec.core.inbound_section import Pair
from mitmsec.core.known_service import KnownService
from mitmsec_certs.known_key import BadChain, OwnChain, key_flaw, opened, own_chain

KEY_LIMIT_BYTES = 1 << 16
CHAIN_LIMIT_BYTES = 1 << 20
DER = b"\x30"  # how PKCS#12 begins, and PEM does not
NO = "no: "
OTHERS = stat.S_IRWXG | stat.S_IRWXO
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class NotTaken(Exception):
    """A file that cannot be taken; the text names it and says why."""


class KnownKeys:
    """The files of one policy. Whoever has it calls `close`, or takes the descriptor."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all = os.memfd_create("keys", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._size_bytes = 0

    def pair(self, certificate: str, key: str) -> Pair:
        """What these two files hold (mitmsec.core.inbound_section.ReadPair). A key that is right is kept.

        Where `certificate` is a PKCS#12 file, `key` is one with its password.
        """
        own, certificate_flaw = None, None
        try:
            content = self._certificates(certificate)
            if content.startswith(DER):
                return self._bundle(certificate, content, key)
            own = own_chain(certificate, content)
        except (BadChain, NotTaken) as error:
            certificate_flaw = str(error)
        begin, flaw = self._size_bytes, None
        try:
            self._take(key)
            flaw = self._flaw(begin, key, own)
        except NotTaken as error:
            flaw = str(error)
        if own is None:
            return Pair(certificate_flaw=certificate_flaw, key_flaw=flaw)
        return Pair(
            key_flaw=flaw,
            names=own.names,
            chain=own.chain,
            sha256=own.sha256,
            not_after_s=own.not_after_s,
            key_bytes=self._size_bytes - begin,
        )

    def detach(self, size_bytes: int | None = None) -> int:
        """The descriptor of a file with all keys in it, one after the other, sealed; the caller's from now on.

        `size_bytes`: with the first of them only, that take so much.
        """
        if size_bytes is not None:
            os.ftruncate(self._all, size_bytes)
        fcntl.fcntl(self._all, fcntl.F_ADD_SEALS, SEALS)
        descriptor, self._all = self._all, -1
        return descriptor

    def close(self) -> None:
        """Idempotent."""
        if self._all >= 0:
            os.close(self._all)
            self._all = -1

    def _bundle(self, name: str, content: bytes, password: str) -> Pair:
        """Opened by a process that ends with it: this one never has the key in clear, nor the password."""
        begin = self._size_bytes

        def question() -> str:
            try:
                self._private(name)
                key, chain = opened(name, content, self._private(password).rstrip(b"\r\n"))
            except (BadChain, NotTaken) as error:
                return NO + str(error)
            os.pwrite(self._all, key, begin)
            return chain.decode()

        said = apart(question) or ""
        if said.startswith(NO):
            return Pair(certificate_flaw=said.removeprefix(NO))
        self._size_bytes = os.fstat(self._all).st_size
        own = own_chain(name, said.encode())
        return Pair(
            key_flaw=self._flaw(begin, name, own),
            names=own.names,
            chain=own.chain,
            sha256=own.sha256,
            not_after_s=own.not_after_s,
            key_bytes=self._size_bytes - begin,
        )

    def _private(self, name: str) -> bytes:
        """A file in which nobody but its owner has rights. Raises NotTaken."""
        with _opened(self._folder / name, name) as file:
            _refuse_others(file, name)
            return os.read(file, CHAIN_LIMIT_BYTES)

    def _certificates(self, name: str) -> bytes:
        with _opened(self._folder / name, name) as file:
            content = os.read(file, CHAIN_LIMIT_BYTES + 1)
        if len(content) > CHAIN_LIMIT_BYTES:
            raise NotTaken(f"{name} is larger than {CHAIN_LIMIT_BYTES} bytes")
        return content

    def _take(self, name: str) -> None:
        """Let the kernel append the file."""
        with _opened(self._folder / name, name) as file:
            found = os.fstat(file)
            _refuse_others(file, name)
            if not 0 < found.st_size <= KEY_LIMIT_BYTES:
                raise NotTaken(f"{name}: a key has 1 to {KEY_LIMIT_BYTES} bytes, not {found.st_size}")
            if os.sendfile(self._all, file, 0, found.st_size) != found.st_size:
                raise NotTaken(f"{name} was changed while it was read")
            self._size_bytes += found.st_size

    def _flaw(self, begin: int, name: str, own: OwnChain | None) -> str | None:
        size, chain = self._size_bytes - begin, own.chain if own is not None else ()

        def question() -> str | None:
            pem = os.pread(self._all, size, begin)
            return key_flaw(name, pem, chain) or (_refusal(name, pem, chain) if chain else None)

        return apart(question)


def _refusal(name: str, pem: bytes, chain: tuple[bytes, ...]) -> str | None:
    """Why a worker could not serve with it: asked of what a worker would use."""
    from mitmsec.engine.services import refusal

    why = refusal(KnownService(name=name, chain=chain), pem)
    return None if why is None else f"{name} and the certificate cannot be used for TLS: {why}"


def _refuse_others(file: int, name: str) -> None:
    mode = stat.S_IMODE(os.fstat(file).st_mode)
    if mode & OTHERS:
        quoted = shlex.quote(name)
        raise NotTaken(f"others than its owner have rights in {name} (mode {mode:04o}): chmod 600 {quoted}")


@contextmanager
def _opened(path: Path, name: str) -> Iterator[int]:
    """A descriptor of a regular file. Raises NotTaken."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # nobody waits for who writes a pipe
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise NotTaken(f"cannot read {name}: {why}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotTaken(f"{name} is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def apart(question: Callable[[], str | None]) -> str | None:
    """The answer to `question`, which is asked in a process that ends with it: what it reads is never in this one."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.write(writing, (question() or "").encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise RuntimeError("the process that looked at a key has failed")
    return said or None
