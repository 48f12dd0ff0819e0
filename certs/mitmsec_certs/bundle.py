"""Trust bundles: the roots that a command would have used, and ours.

    SSL_CERT_FILE, SSL_CERT_DIR, where the caller set one of them ─┐
    else the first of the system's bundles that exists ────────────┴─► Bundle ── with_root ──► PEM for the command
                                                                          └───── pem ────────► verification upstream

Never a runtime's own list (certifi): what the machine's owner distrusts must not come back through us. A file that the
caller named must be right to the last block; in the system's list, and in folders, what cannot be read is left out and
counted, and a folder that is missing beside others gives nothing, as OpenSSL does. Standard library only, so that a
process without `cryptography` can make bundles.
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from mitmsec.core.model import Value

FILE_LIMIT_BYTES = 32 << 20
SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Gentoo, Alpine
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/var/lib/ca-certificates/ca-bundle.pem",
    "/etc/ssl/certs/ca-bundle.crt",  # NixOS
    "/etc/ssl/cert.pem",  # Alpine without its bundle, the BSDs, macOS
)

_BEGIN, _END = b"-----BEGIN ", b"-----END "
_CERTIFICATE_LABELS = (b"CERTIFICATE-----", b"X509 CERTIFICATE-----")
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")
_LISTED_ENDINGS = (".pem", ".crt", ".cer")


class BadBundle(ValueError):
    """A trust file that the caller named cannot be used; the text names it and says why."""


class Files(Protocol):
    """How files that the caller's environment names are read: with the caller's rights, not with ours."""

    def read(self, path: str) -> bytes:
        """The content. Raises OSError."""

    def names(self, folder: str) -> Sequence[str]:
        """What lies in `folder`. Raises OSError."""


class LocalFiles:
    """Files with the rights of this process. Nothing but regular files, and not more than `FILE_LIMIT_BYTES`."""

    def read(self, path: str) -> bytes:
        if not os.path.exists(path):
            raise FileNotFoundError(errno.ENOENT, "there is no such file", path)
        if not os.path.isfile(path):
            raise OSError(errno.EINVAL, "not a regular file", path)
        with open(path, "rb") as file:
            data = file.read(FILE_LIMIT_BYTES + 1)
        if len(data) > FILE_LIMIT_BYTES:
            raise OSError(errno.EFBIG, f"more than {FILE_LIMIT_BYTES} bytes", path)
        return data

    def names(self, folder: str) -> Sequence[str]:
        return sorted(os.listdir(folder))


class Bundle(Value, frozen=True):
    """Roots as DER, each once, in the order in which they were found."""

    roots: tuple[bytes, ...]
    sources: tuple[str, ...]  # files and folders that they came from; empty on a machine without any
    skipped: int = 0  # blocks that are no certificates

    @property
    def pem(self) -> bytes:
        return b"".join(map(_pem, self.roots))

    def adding(self, roots: Iterable[bytes]) -> Bundle:
        """This bundle and further roots (DER)."""
        return Bundle(roots=_once([*self.roots, *roots]), sources=self.sources, skipped=self.skipped)


def roots_as_used(environ: Mapping[str, str], files: Files | None = None) -> Bundle:
    """The roots that a command with `environ` would have used. Raises BadBundle."""
    files = files or LocalFiles()
    file = environ.get("SSL_CERT_FILE")
    folders = [folder for folder in environ.get("SSL_CERT_DIR", "").split(os.pathsep) if folder]
    if not file and not folders:
        return _system(files)
    roots = [*named_file("SSL_CERT_FILE", file, files)] if file else []
    skipped, sources, missing = 0, [file] if file else [], []
    for folder in folders:
        try:
            more, bad = _folder(folder, files)
        except OSError as error:  # OpenSSL finds nothing in it, and looks in the next one
            missing.append(f"{folder}: {error.strerror or error}")
            continue
        roots += more
        skipped += bad
        sources.append(folder)
    if not sources:
        raise BadBundle(f"SSL_CERT_DIR: {'; '.join(missing)}")
    return Bundle(roots=_once(roots), sources=tuple(sources), skipped=skipped)


def with_root(bundle: Bundle, root_pem: str | bytes) -> bytes:
    """The bundle as PEM with our root, once. Raises BadBundle when `root_pem` is not exactly certificates."""
    ours = all_certificates("our root", root_pem.encode() if isinstance(root_pem, str) else root_pem)
    return b"".join(map(_pem, _once([*bundle.roots, *ours])))


def certificates_in(pem: bytes) -> tuple[bytes, ...]:
    """The certificates (DER) of `pem`, without what is none."""
    return tuple(der for der in _blocks(pem) if der is not None)


def all_certificates(source: str, pem: bytes) -> tuple[bytes, ...]:
    """The certificates (DER) of `pem`, every one in it. Raises BadBundle, naming `source`, for a broken one or none."""
    roots: list[bytes] = []
    for number, der in enumerate(_blocks(pem), 1):
        if der is None:
            raise BadBundle(f"{source}: block {number} is not a certificate that can be read")
        roots.append(der)
    if not roots:
        raise BadBundle(f"{source}: no certificate in PEM form in it")
    return tuple(roots)


def named_file(variable: str, path: str, files: Files) -> tuple[bytes, ...]:
    """The certificates (DER) of the file that the caller's `variable` names. Raises BadBundle, naming both."""
    try:
        return all_certificates(f"{variable}: {path}", files.read(path))
    except OSError as error:
        raise BadBundle(f"{variable}: {path}: {error.strerror or error}") from None


# --- where they come from ---------------------------------------------------------------------------------------------
def _system(files: Files) -> Bundle:
    for path in SYSTEM_BUNDLES:
        try:
            found = list(_blocks(files.read(path)))
        except OSError:
            continue
        roots = [der for der in found if der is not None]
        if roots:
            return Bundle(roots=_once(roots), sources=(path,), skipped=len(found) - len(roots))
    return Bundle(roots=(), sources=())


def _folder(folder: str, files: Files) -> tuple[list[bytes], int]:
    """Hashed names as OpenSSL looks them up; in a folder without any, whatever is called a certificate.

    Raises OSError where the folder cannot be read.
    """
    names = files.names(folder)
    hashed = [name for name in names if _HASHED.fullmatch(name)]
    roots: list[bytes] = []
    bad = 0
    for name in hashed or [name for name in names if name.endswith(_LISTED_ENDINGS)]:
        try:
            found = list(_blocks(files.read(os.path.join(folder, name))))
        except OSError:  # a link whose target has gone
            bad += 1
            continue
        roots += [der for der in found if der is not None]
        bad += found.count(None)
    return roots, bad


# --- PEM (RFC 7468) ---------------------------------------------------------------------------------------------------
def _blocks(pem: bytes) -> Iterator[bytes | None]:
    """Each certificate's DER, None for a block that is broken. Text between blocks, and other blocks, are skipped."""
    label: bytes | None = None
    body: list[bytes] = []
    for line in map(bytes.strip, pem.splitlines()):
        if line.startswith(_BEGIN):
            if label is not None:
                yield None  # begun and never ended
            label, body = line[len(_BEGIN) :], []
        elif label is not None and line == _END + label:
            if label in _CERTIFICATE_LABELS:
                yield _der(b"".join(body))
            label = None
        elif label is not None:
            body.append(line)
    if label is not None:
        yield None


def _der(body: bytes) -> bytes | None:
    try:
        der = base64.b64decode(body, validate=True)
    except binascii.Error:
        return None
    return der if _is_certificate(der) else None


def _is_certificate(der: bytes) -> bool:
    """The outline: SEQUENCE { SEQUENCE, SEQUENCE, BIT STRING } and nothing after it (RFC 5280, 4.1)."""
    outer = _element(der, 0)
    if outer is None or outer[0] != 0x30 or outer[2] != len(der):
        return False
    at = outer[1]
    for tag in (0x30, 0x30, 0x03):
        inner = _element(der, at)
        if inner is None or inner[0] != tag:
            return False
        at = inner[2]
    return at == len(der)


def _element(der: bytes, at: int) -> tuple[int, int, int] | None:
    """Tag, start and end of the content of the element at `at`; None unless all of it is there."""
    head = der[at : at + 2]
    if len(head) < 2:
        return None
    start, size_bytes = at + 2, head[1]
    if size_bytes & 0x80:
        digits = size_bytes & 0x7F
        size_bytes = int.from_bytes(der[start : start + digits])
        start += digits
        if not 1 <= digits <= 4:
            return None
    end = start + size_bytes
    return (head[0], start, end) if end <= len(der) else None


def _pem(der: bytes) -> bytes:
    text = base64.b64encode(der)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return b"\n".join((b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""))


def _once(roots: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(roots))
