"""Who signed a file, as far as Windows trusts it: Authenticode, asked through wintrust.dll.

    file ──► WinVerifyTrust ──┬─ trusted ─────► the signer's certificate ──► its subject
                              ├─ not signed ──► its hash ──► a catalog that has it ──► WinVerifyTrust, likewise
                              └─ broken, expired, of an authority that is not trusted ──► nobody

Most of Windows' own programs carry no signature: a catalog of hashes is signed in their place (wintrust.h, mscat.h).
Catalogs are asked by SHA-256 alone, and the first that has the hash counts. Nothing is fetched from anywhere: whether a
certificate was revoked is not asked, and an authority that this machine has never met is not trusted.

Nothing here has been run on Windows. Signatures are verified for real under Wine, which has no hashes for catalogs; for
those tests/redirect/test_windows_authenticode.py has a library object that answers as is documented.
"""

from __future__ import annotations

import ctypes
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import Structure, addressof, byref, c_int, c_int32, c_ubyte, c_uint16, c_uint32, c_void_p, c_wchar_p, sizeof
from typing import Any, Final

UI_NONE, REVOKE_NONE = 2, 0  # wintrust.h
CHOICE_FILE, CHOICE_CATALOG = 1, 2
VERIFY, CLOSE = 1, 2
REVOCATION_CHECK_NONE, CACHE_ONLY_URL_RETRIEVAL = 0x10, 0x1000
GENERIC_VERIFY_V2: Final = uuid.UUID("00aac56b-cd44-11d0-8cc2-00c04fc295ee").bytes_le
NO_SIGNATURE: Final = 0x800B0100
NAME_RDN_TYPE = 2  # wincrypt.h
X500_REVERSED = 3 | 0x02000000  # CERT_X500_NAME_STR and CERT_NAME_STR_REVERSE_FLAG, as .NET and PowerShell write it
SUBJECT_CHARS = 4096
HASH_BYTES = 64
PATH_CHARS = 260


class FileInfo(Structure):
    """WINTRUST_FILE_INFO."""

    _fields_ = (("size", c_uint32), ("path", c_wchar_p), ("file", c_void_p), ("known_subject", c_void_p))


class CatalogMember(Structure):
    """WINTRUST_CATALOG_INFO."""

    _fields_ = (
        *(("size", c_uint32), ("version", c_uint32), ("catalog", c_wchar_p), ("tag", c_wchar_p)),
        *(("path", c_wchar_p), ("file", c_void_p), ("hash", c_void_p), ("hash_bytes", c_uint32)),
        *(("context", c_void_p), ("admin", c_void_p)),
    )


class CatalogPath(Structure):
    """CATALOG_INFO."""

    _fields_ = (("size", c_uint32), ("path", c_uint16 * PATH_CHARS))


class TrustData(Structure):
    """WINTRUST_DATA."""

    _fields_ = (
        *(("size", c_uint32), ("policy", c_void_p), ("sip", c_void_p), ("ui", c_uint32), ("revocation", c_uint32)),
        *(("choice", c_uint32), ("info", c_void_p), ("action", c_uint32), ("state", c_void_p), ("url", c_wchar_p)),
        *(("flags", c_uint32), ("context", c_uint32), ("settings", c_void_p)),
    )


class ProviderCertificate(Structure):
    """CRYPT_PROVIDER_CERT, as far as it is read."""

    _fields_ = (("size", c_uint32), ("certificate", c_void_p))


class Authenticode:
    """`wintrust` and `crypt32` stand for the DLLs of these names. Raises OSError where there are none."""

    def __init__(self, wintrust: Any = None, crypt32: Any = None) -> None:
        self._wintrust, self._crypt32 = (wintrust, crypt32) if wintrust is not None else _loaded()

    def signer(self, path: str, handle: int) -> str | None:
        """The subject of who signed the file that is open as `handle`; None: nobody whom Windows trusts.

        Takes tens of milliseconds. Raises OSError where that cannot be found out.
        """
        info = FileInfo(sizeof(FileInfo), path, handle, None)
        status, subject = self._verified(CHOICE_FILE, info)
        if status != NO_SIGNATURE:
            return _judged(status, subject)
        if not hasattr(self._wintrust, "CryptCATAdminCalcHashFromFileHandle2"):
            raise OSError("wintrust.dll knows of no catalogs")
        return self._signer_of_catalog(path, handle)

    def _signer_of_catalog(self, path: str, handle: int) -> str | None:
        with self._catalogs() as admin:
            digest, size = (c_ubyte * HASH_BYTES)(), c_uint32(HASH_BYTES)
            if not self._wintrust.CryptCATAdminCalcHashFromFileHandle2(admin, handle, byref(size), digest, 0):
                raise OSError(f"{path} cannot be hashed for catalogs")
            found = self._wintrust.CryptCATAdminEnumCatalogFromHash(admin, digest, size.value, 0, None)
            if not found:
                return None
            try:
                catalog = self._path_of(found)
            finally:
                self._wintrust.CryptCATAdminReleaseCatalogContext(admin, found, 0)
            tag = bytes(digest[: size.value]).hex().upper()
            member = CatalogMember(
                *(sizeof(CatalogMember), 0, catalog, tag, path, handle),
                *(addressof(digest), size.value, None, admin),
            )
            return _judged(*self._verified(CHOICE_CATALOG, member))

    @contextmanager
    def _catalogs(self) -> Iterator[int]:
        admin = c_void_p()
        if not self._wintrust.CryptCATAdminAcquireContext2(byref(admin), None, "SHA256", None, 0):
            raise OSError("the catalogs cannot be asked for")
        try:
            yield admin.value or 0
        finally:
            self._wintrust.CryptCATAdminReleaseContext(admin.value, 0)

    def _path_of(self, catalog: int) -> str:
        info = CatalogPath(sizeof(CatalogPath))
        if not self._wintrust.CryptCATCatalogInfoFromContext(catalog, byref(info), 0):
            raise OSError("a catalog does not say where it lies")
        return bytes(info.path).decode("utf-16-le", errors="replace").partition("\0")[0]

    def _verified(self, choice: int, info: Structure) -> tuple[int, str | None]:
        """What Windows says to it (0: trusted), and then whose it is."""
        data = TrustData(
            *(sizeof(TrustData), None, None, UI_NONE, REVOKE_NONE, choice, addressof(info), VERIFY, None, None),
            *(REVOCATION_CHECK_NONE | CACHE_ONLY_URL_RETRIEVAL, 0, None),
        )
        action = (c_ubyte * 16).from_buffer_copy(GENERIC_VERIFY_V2)
        try:
            status = self._wintrust.WinVerifyTrust(c_void_p(-1), action, byref(data)) & 0xFFFFFFFF
            return status, self._subject(data.state) if status == 0 else None
        finally:
            data.action = CLOSE
            self._wintrust.WinVerifyTrust(c_void_p(-1), action, byref(data))

    def _subject(self, state: int | None) -> str | None:
        """Of the certificate that signed first; what it certifies and what is behind it was verified."""
        provider = self._wintrust.WTHelperProvDataFromStateData(state)
        signer = self._wintrust.WTHelperGetProvSignerFromChain(provider, 0, 0, 0) if provider else None
        found = self._wintrust.WTHelperGetProvCertFromChain(signer, 0) if signer else None
        if not found:
            return None
        certificate = ProviderCertificate.from_address(found).certificate
        kind, text = c_uint32(X500_REVERSED), ctypes.create_unicode_buffer(SUBJECT_CHARS)
        ask = self._crypt32.CertGetNameStringW
        size = ask(certificate, NAME_RDN_TYPE, 0, byref(kind), text, SUBJECT_CHARS)
        # with every zero that stands within it: cut there, it would be another's name
        return "".join(text[: size - 1]).encode(errors="replace").decode() if 1 < size < SUBJECT_CHARS else None


def _judged(status: int, subject: str | None) -> str | None:
    """TRUST_E_… and CERT_E_… are verdicts; any other is that none could be given."""
    if status == 0 and subject is not None:
        return subject
    if status >> 16 == 0x800B or status >> 12 == 0x80096:
        return None
    raise OSError(f"WinVerifyTrust: {status:#x}" if status else "WinVerifyTrust: a signer without a name")


def _loaded() -> tuple[Any, Any]:
    if not hasattr(ctypes, "WinDLL"):
        raise OSError("wintrust.dll is there on Windows only")
    return _declared(ctypes.WinDLL("wintrust"), ctypes.WinDLL("crypt32"))


def _declared(wintrust: Any, crypt32: Any) -> tuple[Any, Any]:
    """With the types of the calls: handles are pointers. Wine lacks one of them."""
    pointer, word = c_void_p, c_uint32
    for library, name, result, arguments in (
        (wintrust, "WinVerifyTrust", c_int32, (pointer, pointer, pointer)),
        (wintrust, "WTHelperProvDataFromStateData", pointer, (pointer,)),
        (wintrust, "WTHelperGetProvSignerFromChain", pointer, (pointer, word, c_int, word)),
        (wintrust, "WTHelperGetProvCertFromChain", pointer, (pointer, word)),
        (wintrust, "CryptCATAdminAcquireContext2", c_int, (pointer, pointer, c_wchar_p, pointer, word)),
        (wintrust, "CryptCATAdminReleaseContext", c_int, (pointer, word)),
        (wintrust, "CryptCATAdminCalcHashFromFileHandle2", c_int, (pointer, pointer, pointer, pointer, word)),
        (wintrust, "CryptCATAdminEnumCatalogFromHash", pointer, (pointer, pointer, word, word, pointer)),
        (wintrust, "CryptCATAdminReleaseCatalogContext", c_int, (pointer, pointer, word)),
        (wintrust, "CryptCATCatalogInfoFromContext", c_int, (pointer, pointer, word)),
        (crypt32, "CertGetNameStringW", word, (pointer, word, word, pointer, pointer, word)),
    ):
        function = getattr(library, name, None)
        if function is not None:
            function.restype, function.argtypes = result, arguments
    return wintrust, crypt32
