"""Whoever signed a file is told as Windows says it: by real signatures under Wine, else by an object of our own."""

from __future__ import annotations

import ctypes
import hashlib
import sys
import uuid
from ctypes import sizeof
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from windows_python import WHY_NOT, is_there, windows_python

from mitmsec.core.signers import common_name
from mitmsec_redirect.windows_authenticode import (
    NO_SIGNATURE,
    Authenticode,
    CatalogMember,
    CatalogPath,
    FileInfo,
    ProviderCertificate,
    TrustData,
)

FILE, ADMIN, FOUND, STATE, PROVIDER, SIGNER, CERTIFICATE = 0x1_0000_0011, 12, 13, 14, 15, 16, 17
SUBJECT = "CN=A Corporation, O=A, C=US"
CATALOG = "C:\\Windows\\System32\\CatRoot\\{F750}\\a.cat"
DIGEST = hashlib.sha256(b"MZ").digest()
BAD_DIGEST, EXPIRED, UNTRUSTED_ROOT = 0x80096010, 0x800B0101, 0x800B0109


class Dlls:
    """wintrust and crypt32. `file` and `catalog` are what WinVerifyTrust says to either."""

    def __init__(self, file: int = 0, catalog: int = 0, **answers: Any) -> None:
        self.file, self.catalog = file, catalog
        self.subject, self.is_in_catalog, self.lacks = SUBJECT, True, ""
        self.open: list[str] = []  # what is to be closed
        for name, answer in answers.items():
            setattr(self, name, answer)
        self._certificate = ProviderCertificate(sizeof(ProviderCertificate), CERTIFICATE)

    def WinVerifyTrust(self, window: Any, action: Any, data: Any) -> int:  # noqa: N802  # its name
        told: TrustData = data._obj
        assert (window.value, bytes(action)) == (2**64 - 1, uuid.UUID("00aac56b-cd44-11d0-8cc2-00c04fc295ee").bytes_le)
        assert (told.size, told.ui, told.revocation, told.flags) == (88, 2, 0, 0x1010), "asks nobody, fetches nothing"
        if told.action == 2:  # WTD_STATEACTION_CLOSE
            self.open.remove("state")
            return 0
        assert told.action == 1
        self.open.append("state")
        told.state = STATE
        if told.choice == 1:
            one = FileInfo.from_address(told.info)
            assert (one.size, one.path, one.file) == (32, "C:\\x.exe", FILE)
            return signed(self.file)
        member = CatalogMember.from_address(told.info)
        assert (told.choice, member.size, member.catalog, member.path) == (2, 72, CATALOG, "C:\\x.exe")
        assert (member.tag, member.file, member.admin) == (DIGEST.hex().upper(), FILE, ADMIN)
        assert ctypes.string_at(member.hash, member.hash_bytes) == DIGEST
        return signed(self.catalog)

    def WTHelperProvDataFromStateData(self, state: int) -> int | None:  # noqa: N802  # its name
        assert state == STATE
        return None if self.lacks == "provider" else PROVIDER

    def WTHelperGetProvSignerFromChain(self, provider: int, index: int, counter: int, of: int) -> int | None:  # noqa: N802
        assert (provider, index, counter, of) == (PROVIDER, 0, 0, 0), "who signed first, no countersignature"
        return None if self.lacks == "signer" else SIGNER

    def WTHelperGetProvCertFromChain(self, signer: int, index: int) -> int | None:  # noqa: N802  # its name
        assert (signer, index) == (SIGNER, 0)
        return None if self.lacks == "certificate" else ctypes.addressof(self._certificate)

    def CertGetNameStringW(self, certificate: int, kind: int, flags: int, how: Any, text: Any, room: int) -> int:  # noqa: N802
        assert (certificate, kind, flags) == (CERTIFICATE, 2, 0), "of the subject, as distinguished name"
        assert how._obj.value == 0x02000003
        size = min(len(self.subject) + 1, room)
        for at, char in enumerate(self.subject[: size - 1]):
            text[at] = char
        text[size - 1] = "\0"
        return size

    def CryptCATAdminAcquireContext2(self, admin: Any, system: None, kind: str, strength: None, zero: int) -> int:  # noqa: N802
        assert (system, kind, strength, zero) == (None, "SHA256", None, 0)
        admin._obj.value = ADMIN
        self.open += ["admin"] if self.lacks != "admin" else []
        return int(self.lacks != "admin")

    def CryptCATAdminReleaseContext(self, admin: int, zero: int) -> int:  # noqa: N802  # its name
        assert (admin, zero) == (ADMIN, 0)
        self.open.remove("admin")
        return 1

    def CryptCATAdminCalcHashFromFileHandle2(self, admin: int, file: int, size: Any, digest: Any, zero: int) -> int:  # noqa: N802
        assert (admin, file, zero) == (ADMIN, FILE, 0)
        assert size._obj.value >= 32
        ctypes.memmove(digest, DIGEST, 32)
        size._obj.value = 32
        return int(self.lacks != "hash")

    def CryptCATAdminEnumCatalogFromHash(  # noqa: N802  # its name
        self, admin: int, digest: Any, size: int, zero: int, before: None
    ) -> int | None:
        assert (admin, bytes(digest[:size]), zero, before) == (ADMIN, DIGEST, 0, None)
        self.open += ["found"] if self.is_in_catalog else []
        return FOUND if self.is_in_catalog else None

    def CryptCATCatalogInfoFromContext(self, found: int, info: Any, zero: int) -> int:  # noqa: N802  # its name
        told: CatalogPath = info._obj
        assert (found, told.size, zero) == (FOUND, 4 + 2 * 260, 0)
        told.path[: len(CATALOG)] = [ord(char) for char in CATALOG]
        return int(self.lacks != "path")

    def CryptCATAdminReleaseCatalogContext(self, admin: int, found: int, zero: int) -> int:  # noqa: N802  # its name
        assert (admin, found, zero) == (ADMIN, FOUND, 0)
        self.open.remove("found")
        return 1


def signed(status: int) -> int:
    """A HRESULT as C gives it back."""
    return status - 2**32 if status >= 2**31 else status


def signer(dlls: Dlls) -> str | None:
    """As it is told; and whatever was opened is closed again, also where nothing is told."""
    try:
        return Authenticode(dlls, dlls).signer("C:\\x.exe", FILE)
    finally:
        assert dlls.open == []


def test_structures_have_the_sizes_of_windows() -> None:
    assert (sizeof(FileInfo), sizeof(TrustData), sizeof(CatalogMember), sizeof(CatalogPath)) == (32, 88, 72, 524)
    assert (TrustData.info.offset, TrustData.state.offset, TrustData.flags.offset) == (40, 56, 72)
    assert (CatalogMember.hash.offset, CatalogMember.admin.offset) == (40, 64)
    assert ProviderCertificate.certificate.offset == 8


def test_the_signer_is_whose_certificate_signed_the_file() -> None:
    assert signer(Dlls()) == SUBJECT


@pytest.mark.parametrize("status", [BAD_DIGEST, EXPIRED, UNTRUSTED_ROOT])
def test_what_windows_does_not_trust_nobody_has_signed(status: int) -> None:
    assert signer(Dlls(file=status)) is None
    assert signer(Dlls(file=NO_SIGNATURE, catalog=status)) is None


def test_a_file_without_a_signature_may_be_in_a_catalog() -> None:
    assert signer(Dlls(file=NO_SIGNATURE)) == SUBJECT
    assert signer(Dlls(file=NO_SIGNATURE, is_in_catalog=False)) is None


@pytest.mark.parametrize("lacks", ["admin", "hash", "path"])
def test_where_catalogs_cannot_be_asked_it_is_not_known(lacks: str) -> None:
    with pytest.raises(OSError, match="catalog"):
        signer(Dlls(file=NO_SIGNATURE, lacks=lacks))


def test_wine_has_no_hashes_for_catalogs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Dlls, "CryptCATAdminCalcHashFromFileHandle2")
    assert signer(Dlls()) == SUBJECT
    with pytest.raises(OSError, match="knows of no catalogs"):
        signer(Dlls(file=NO_SIGNATURE))


@pytest.mark.parametrize("lacks", ["provider", "signer", "certificate"])
def test_a_signer_that_is_not_told_is_not_known(lacks: str) -> None:
    with pytest.raises(OSError, match="without a name"):
        signer(Dlls(lacks=lacks))


@pytest.mark.parametrize("subject", ["", "x" * 5000])
def test_nor_is_one_with_no_name_or_one_that_is_too_long(subject: str) -> None:
    with pytest.raises(OSError, match="without a name"):
        signer(Dlls(subject=subject))


@pytest.mark.parametrize("status", [2, 5, 0x80070005, 0x80092003])
def test_what_is_no_verdict_is_told_as_it_is(status: int) -> None:
    with pytest.raises(OSError, match=f"WinVerifyTrust: {status:#x}"):
        signer(Dlls(file=status))


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=300))
def test_a_subject_is_told_whole_whatever_stands_in_it(subject: str) -> None:
    assert signer(Dlls(subject=subject)) == subject


def test_half_a_character_can_be_written_and_is_nobody_elses() -> None:
    assert signer(Dlls(subject="CN=\ud800")) == "CN=?"


def test_a_zero_in_a_name_does_not_make_it_anothers() -> None:
    told = signer(Dlls(subject="CN=A Corporation\0x, C=US"))
    assert told is not None
    assert common_name(told) == "A Corporation\0x"


@pytest.mark.skipif(sys.platform == "win32", reason="it is there")
def test_elsewhere_there_are_no_signatures() -> None:
    with pytest.raises(OSError, match="on Windows only"):
        Authenticode()


# --- under Wine -------------------------------------------------------------------------------------------------------
UNDER_WINE = r"""
import msvcrt
from mitmsec_redirect.windows_system import WindowsSystem

system = WindowsSystem()
def signer(path):
    file = system.open_file(path)
    try: told(system.signer(path, file))
    except OSError as error: told(f"OSError: {error}")
    finally: os.close(file)

signer(sys.executable)
copy = os.path.join(here, "changed.exe")
with open(sys.executable, "rb") as file: content = bytearray(file.read())
content[0x400] ^= 1
with open(copy, "wb") as file: file.write(content)
signer(copy)
os.remove(copy)
signer(os.path.join(here, "WinDivert64.dll"))
"""


@pytest.mark.skipif(not is_there(), reason=WHY_NOT)
def test_under_wine_a_real_signature_holds_and_a_changed_file_has_none() -> None:
    real, changed, unsigned = windows_python("signers.py", UNDER_WINE)
    assert common_name(real) == "Python Software Foundation"
    assert changed is None
    assert unsigned == "OSError: wintrust.dll knows of no catalogs"
