"""Windows' ROOT stores, as they are documented; test_schannel.py has what programs under Wine make of them."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from mitmsec_certs.truststore.windows_roots import Context, Location, NotDone, WindowsRoots, read_note, write_note


# --- what Wine cannot show --------------------------------------------------------------------------------------------
class Crypt32:
    """A store in memory that answers as is documented; `fails` names the call that does not."""

    def __init__(self, fails: str = "", *, keeps: bool = False) -> None:
        self.held: list[bytes] = []
        self.fails, self.keeps = fails, keeps
        self.usages: list[int] = []
        self.contexts: list[Any] = []

    def CertOpenStore(self, *words: Any) -> int:  # noqa: N802
        assert words[4] == "ROOT"
        return 0 if self.fails == "open" else 1

    def CertCloseStore(self, *words: Any) -> int:  # noqa: N802
        return 1

    def CertCreateCertificateContext(self, encoding: int, der: bytes, size: int) -> Any:  # noqa: N802
        return None if self.fails == "create" else self._context(der)

    def CertFreeCertificateContext(self, context: Any) -> int:  # noqa: N802
        return 1

    def CertSetEnhancedKeyUsage(self, context: Any, usages: Any) -> int:  # noqa: N802
        self.usages.append(usages._obj.count)
        return int(self.fails != "usage")

    def CertAddCertificateContextToStore(self, store: int, context: Any, how: int, out: Any) -> int:  # noqa: N802
        if self.fails not in ("add", "add in silence"):
            self.held.append(self._der(context))
        return int(self.fails != "add")

    def CertEnumCertificatesInStore(self, store: int, context: Any) -> Any:  # noqa: N802
        at = 0 if context is None else self.contexts.index(context) + 1
        if at == 0:
            self.contexts = [self._context(der) for der in self.held]
        return self.contexts[at] if at < len(self.contexts) else None

    def CertFindCertificateInStore(self, *words: Any) -> Any:  # noqa: N802
        return self._context(self.held[-1])

    def CertDeleteCertificateFromStore(self, context: Any) -> int:  # noqa: N802
        if not self.keeps:
            self.held.remove(self._der(context))
        return 1

    def _context(self, der: bytes) -> Any:
        buffer = ctypes.create_string_buffer(der, len(der))
        context = Context(1, ctypes.cast(buffer, ctypes.c_void_p), len(der))
        context.buffer = buffer
        return ctypes.pointer(context)

    def _der(self, context: Any) -> bytes:
        return ctypes.string_at(context.contents.der, context.contents.der_bytes)


class Registry:
    HKEY_LOCAL_MACHINE, HKEY_CURRENT_USER = "machine", "user"

    def __init__(self, crypt32: Crypt32, *, lets_go: bool = True) -> None:
        self.crypt32, self.lets_go = crypt32, lets_go
        self.asked: list[str] = []

    def DeleteKey(self, hive: str, path: str) -> None:  # noqa: N802
        self.asked.append(hive)
        if not self.lets_go:
            raise FileNotFoundError
        self.crypt32.held.clear()


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "note"


@pytest.mark.parametrize("location", Location)
def test_a_store_that_does_not_let_go_is_asked_by_its_registry(location: Location, note: Path) -> None:
    crypt32 = Crypt32(keeps=True)
    registry = Registry(crypt32)
    roots = WindowsRoots(location, crypt32, registry)
    assert roots.trust(b"root", note)
    assert crypt32.usages == [1]
    assert roots.untrust(note)
    assert registry.asked == [location]
    assert not note.exists()


def test_one_that_never_lets_go_keeps_its_note(note: Path) -> None:
    crypt32 = Crypt32(keeps=True)
    roots = WindowsRoots(Location.MACHINE, crypt32, Registry(crypt32, lets_go=False))
    roots.trust(b"root", note)
    with pytest.raises(NotDone, match="still holds"):
        roots.untrust(note)
    assert read_note(note) == b"root"


@pytest.mark.parametrize("fails", ["create", "usage", "add", "add in silence"])
def test_what_fails_leaves_neither_root_nor_note(fails: str, note: Path) -> None:
    crypt32 = Crypt32(fails)
    with pytest.raises(NotDone):
        WindowsRoots(Location.MACHINE, crypt32, Registry(crypt32)).trust(b"root", note)
    assert (crypt32.held, note.exists()) == ([], False)


def test_a_store_that_cannot_be_opened_is_an_error(note: Path) -> None:
    crypt32 = Crypt32("open")
    with pytest.raises(OSError, match="cannot be opened"):
        WindowsRoots(Location.USER, crypt32, Registry(crypt32)).certificates()


def test_a_root_that_was_there_before_is_not_ours(note: Path) -> None:
    crypt32 = Crypt32()
    crypt32.held = [b"another", b"root"]
    roots = WindowsRoots(Location.MACHINE, crypt32, Registry(crypt32))
    assert roots.certificates() == [b"another", b"root"]
    assert not roots.trust(b"root", note)
    assert not note.exists()
    assert not roots.untrust(note)


@pytest.mark.parametrize("was_added", [False, True])
def test_who_was_killed_after_the_note_is_undone_by_it(was_added: bool, note: Path) -> None:
    crypt32 = Crypt32()
    write_note(note, b"root")
    if was_added:
        crypt32.held.append(b"root")
    assert WindowsRoots(Location.MACHINE, crypt32, Registry(crypt32)).untrust(note) == was_added
    assert (crypt32.held, note.exists()) == ([], False)


def test_elsewhere_there_is_no_such_store() -> None:
    with pytest.raises(OSError, match="this is not Windows"):
        WindowsRoots(Location.MACHINE)
