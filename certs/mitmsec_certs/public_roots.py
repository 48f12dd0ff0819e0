"""Roots that the operating system's vendor ships, told apart from those that somebody has installed since.

Vendors keep the two apart: theirs lie below /usr/share, an administrator's below /usr/local/share or /etc. What is in a
bundle and among the vendor's is public. Which of a bundle's roots are stands in its text for whoever gets the bundle:
PEM files may have text between their blocks (RFC 7468, 2). Standard library only, as in `bundle`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

from mitmsec_certs.bundle import Bundle, Files, LocalFiles, certificates_in

FOLDERS = ("/usr/share/ca-certificates/mozilla",)  # Debian, Ubuntu, Alpine
FILES = (
    "/usr/share/pki/ca-trust-source/ca-bundle.trust.p11-kit",  # Fedora, RHEL
    "/usr/share/pki/trust/ca-certificates-mozilla.trust.p11-kit",  # openSUSE
    "/usr/share/ca-certificates/trust-source/mozilla.trust.p11-kit",  # Arch
)
_PUBLIC, _NAMED = b"# public\n", b"# named by the policy\n"
_BEGIN = b"-----BEGIN CERTIFICATE-----"


def public_roots(files: Files | None = None) -> frozenset[bytes]:
    """The vendor's roots (DER); empty where this machine has no list of them."""
    files = files or LocalFiles()
    paths = [os.path.join(folder, name) for folder in FOLDERS for name in _names(folder, files)]
    return frozenset(der for path in (*paths, *FILES) for der in certificates_in(_read(path, files)))


def _names(folder: str, files: Files) -> Iterable[str]:
    try:
        return files.names(folder)
    except OSError:
        return ()


def _read(path: str, files: Files) -> bytes:
    try:
        return files.read(path)
    except OSError:
        return b""


def marked(bundle: Bundle, public: frozenset[bytes], named: frozenset[bytes] = frozenset()) -> bytes:
    """The bundle as PEM, with a mark before each root that is public, and before others that the policy names."""

    def mark(der: bytes) -> bytes:
        return _PUBLIC if der in public else _NAMED if der in named else b""

    return b"".join(mark(der) + Bundle(roots=(der,), sources=()).pem for der in bundle.roots)


def marks_in(pem: bytes) -> frozenset[str]:
    """SHA-256 (hex) of the roots that `marked` has marked as public."""
    return _marked_with(_PUBLIC, pem)


def named_in(pem: bytes) -> frozenset[str]:
    """Likewise, of those that only the policy names."""
    return _marked_with(_NAMED, pem)


def _marked_with(mark: bytes, pem: bytes) -> frozenset[str]:
    blocks = pem.split(mark)[1:]
    ends = [block for block in blocks if block.startswith(_BEGIN)]
    return frozenset(hashlib.sha256(certificates_in(block)[0]).hexdigest() for block in ends if certificates_in(block))
