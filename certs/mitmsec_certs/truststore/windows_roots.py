"""Windows' own ROOT stores, the machine's and the calling user's, through crypt32.dll.

    note ──► CertAddCertificateContextToStore ──► read back ──► trusted
     │                                               └─ not there ─► removed, note gone
     └── CertDelete… ──► read back ──► still there? its registry key goes ──► read back ──► note gone

A certificate is one key of the registry, written at once, so there is no half of it: the note, which is on disk before
and names what was not there then, is all that has to be kept. The root is trusted for TLS servers alone, whatever else
it may be good for (an enhanced key usage of the store's, beside the certificate). Windows asks the user before it adds
to the user's own store; to the machine's only an administrator may add.

Nothing here has been run on Windows. It runs under Wine, which says that it has removed a certificate and has not; so
the removal is proved, and where it is not so the registry is asked. Wine keeps no roots of users.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
from collections.abc import Iterator
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_uint32, c_void_p, c_wchar_p, cast, create_string_buffer
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

SYSTEM_STORE, OPEN_EXISTING = 10, 0x4000  # wincrypt.h
ENCODING, ADD_NEW, FIND_SHA1 = 0x10001, 1, 0x10000
SERVER_AUTH: Final = b"1.3.6.1.5.5.7.3.1"
KEYS = r"SOFTWARE\Microsoft\SystemCertificates\ROOT\Certificates"


class Location(StrEnum):
    """Whose ROOT store."""

    MACHINE = "machine"
    USER = "user"


_FLAGS = {Location.MACHINE: 2 << 16, Location.USER: 1 << 16}  # CERT_SYSTEM_STORE_LOCAL_MACHINE, _CURRENT_USER


class Context(Structure):
    """CERT_CONTEXT, as far as it is read."""

    _fields_ = (("encoding", c_uint32), ("der", c_void_p), ("der_bytes", c_uint32))


class Blob(Structure):
    """CRYPT_DATA_BLOB."""

    _fields_ = (("size", c_uint32), ("data", c_void_p))


class Usages(Structure):
    """CERT_ENHKEY_USAGE."""

    _fields_ = (("count", c_uint32), ("names", c_void_p))


class NotDone(Exception):
    """The store trusts what it has trusted before; the text says why."""


class WindowsRoots:
    """One ROOT store. `crypt32` and `registry` stand for the DLL and for winreg. Raises OSError where there is none."""

    def __init__(self, location: Location, crypt32: Any = None, registry: Any = None) -> None:
        self._location = location
        self._crypt32, self._registry = (crypt32, registry) if crypt32 is not None else _loaded()

    def trust(self, der: bytes, note: Path) -> bool:
        """Whether it was added: trusted when this returns, and `note` says that it is ours to remove.

        Raises NotDone, OSError.
        """
        if self.holds(der):
            return False
        write_note(note, der)
        try:
            self._add(der)
            if not self.holds(der):
                raise NotDone(f"the {self._location}'s ROOT store does not hold what was added")
        except BaseException:
            self.untrust(note)
            raise
        return True

    def untrust(self, note: Path) -> bool:
        """Whether there was something to remove. Not trusted when this returns, and `note` gone.

        Raises NotDone, OSError.
        """
        der = read_note(note)
        if der is None:
            return False
        removed = self.holds(der)
        if removed:
            self._remove(der)
        if self.holds(der):
            self._forget(der)
        if self.holds(der):
            raise NotDone(f"the {self._location}'s ROOT store still holds what was removed")
        note.unlink()
        return removed

    def holds(self, der: bytes) -> bool:
        """As the store is read now, anew."""
        return der in self.certificates()

    def certificates(self) -> list[bytes]:
        """All (DER), of the store's registry, the group policy's and the enterprise's alike. Raises OSError."""
        found, context = [], None
        with self._opened() as store:
            while context := self._crypt32.CertEnumCertificatesInStore(store, context):
                one = cast(context, POINTER(Context)).contents
                found.append(ctypes.string_at(one.der, one.der_bytes))
        return found

    # -- one call each -------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        flags = _FLAGS[self._location] | OPEN_EXISTING
        store = self._crypt32.CertOpenStore(SYSTEM_STORE, 0, None, flags, "ROOT")
        if not store:
            raise OSError(f"the {self._location}'s ROOT store cannot be opened")
        try:
            yield store
        finally:
            self._crypt32.CertCloseStore(store, 0)  # what was changed is written now

    def _add(self, der: bytes) -> None:
        context = self._crypt32.CertCreateCertificateContext(ENCODING, der, len(der))
        if not context:
            raise NotDone("Windows does not take it for a certificate")
        try:
            name = c_char_p(SERVER_AUTH)
            usages = Usages(1, cast(byref(name), c_void_p))
            if not self._crypt32.CertSetEnhancedKeyUsage(context, byref(usages)):
                raise NotDone("Windows does not limit it to TLS servers")
            with self._opened() as store:
                if not self._crypt32.CertAddCertificateContextToStore(store, context, ADD_NEW, None):
                    raise NotDone(f"Windows does not add it to the {self._location}'s ROOT store")
        finally:
            self._crypt32.CertFreeCertificateContext(context)

    def _remove(self, der: bytes) -> None:
        digest = create_string_buffer(hashlib.sha1(der, usedforsecurity=False).digest(), 20)
        with self._opened() as store:
            blob = Blob(20, cast(digest, c_void_p))
            context = self._crypt32.CertFindCertificateInStore(store, ENCODING, 0, FIND_SHA1, byref(blob), None)
            if context:
                self._crypt32.CertDeleteCertificateFromStore(context)  # which frees the context, too

    def _forget(self, der: bytes) -> None:
        """The registry's key of it, where the store does not let go."""
        hive = self._registry.HKEY_LOCAL_MACHINE if self._location is Location.MACHINE else None
        digest = hashlib.sha1(der, usedforsecurity=False).hexdigest().upper()
        with contextlib.suppress(FileNotFoundError):
            self._registry.DeleteKey(hive or self._registry.HKEY_CURRENT_USER, rf"{KEYS}\{digest}")


# --- notes ------------------------------------------------------------------------------------------------------------
def write_note(note: Path, der: bytes) -> None:
    """On disk when this returns: `der` was not there before."""
    new = note.with_name(f"{note.name}.new")
    with new.open("wb") as file:
        file.write(der)
        file.flush()
        os.fsync(file.fileno())
    new.replace(note)


def read_note(note: Path) -> bytes | None:
    """What is ours to remove; None: nothing is."""
    try:
        return note.read_bytes()
    except FileNotFoundError:
        return None


# --- the libraries ----------------------------------------------------------------------------------------------------
def _loaded() -> tuple[Any, Any]:
    if not hasattr(ctypes, "WinDLL"):
        raise OSError("this is not Windows")
    import winreg

    return _declared(ctypes.WinDLL("crypt32")), winreg


def _declared(crypt32: Any) -> Any:
    """With what its functions take and return: pointers are wider than what ctypes supposes."""
    for name, result, arguments in (
        ("CertOpenStore", c_void_p, (c_void_p, c_uint32, c_void_p, c_uint32, c_wchar_p)),
        ("CertCloseStore", c_int, (c_void_p, c_uint32)),
        ("CertEnumCertificatesInStore", c_void_p, (c_void_p, c_void_p)),
        ("CertCreateCertificateContext", c_void_p, (c_uint32, c_char_p, c_uint32)),
        ("CertFreeCertificateContext", c_int, (c_void_p,)),
        ("CertSetEnhancedKeyUsage", c_int, (c_void_p, c_void_p)),
        ("CertAddCertificateContextToStore", c_int, (c_void_p, c_void_p, c_uint32, c_void_p)),
        ("CertFindCertificateInStore", c_void_p, (c_void_p, c_uint32, c_uint32, c_uint32, c_void_p, c_void_p)),
        ("CertDeleteCertificateFromStore", c_int, (c_void_p,)),
    ):
        function = getattr(crypt32, name)
        function.restype, function.argtypes = result, arguments
    return crypt32
