"""Signatures are found out one after the other, and nobody waits, however many are asked for."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mitmsec_redirect import windows_signers
from mitmsec_redirect.windows_signers import Signature, Signers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.exe"
    path.write_bytes(b"MZ")
    return path


def test_what_is_asked_is_told_and_the_file_is_closed(file: Path) -> None:
    asked: list[tuple[str, bytes]] = []

    def ask(path: str, descriptor: int) -> str | None:
        asked.append((path, os.read(descriptor, 2)))
        return "CN=A"

    signers = Signers(ask)
    descriptors = [os.open(file, os.O_RDONLY) for _ in range(3)]
    results = [signers.begin(f"{number}.exe", one) for number, one in enumerate(descriptors)]
    assert [one.result(timeout=30) for one in results] == [Signature(subject="CN=A")] * 3
    assert asked == [("0.exe", b"MZ"), ("1.exe", b"MZ"), ("2.exe", b"MZ")]
    for one in descriptors:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(one)


def test_nobody_is_not_the_same_as_not_known(file: Path) -> None:
    def ask(path: str, descriptor: int) -> str | None:
        if path == "odd.exe":
            raise OSError("WinVerifyTrust: 0x2")
        if path == "strange.exe":
            raise AttributeError("CryptCATAdminAcquireContext2")
        return None

    signers = Signers(ask)
    odd = signers.begin("odd.exe", os.open(file, os.O_RDONLY))
    strange = signers.begin("strange.exe", os.open(file, os.O_RDONLY))
    unsigned = signers.begin("x.exe", os.open(file, os.O_RDONLY))
    assert (odd.result(timeout=30), strange.result(timeout=30)) == (None, None)
    assert unsigned.result(timeout=30) == Signature(subject=None), "asked about after them"


def test_what_there_is_no_room_for_stays_unknown(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_signers, "WAITING_LIMIT", 2)
    goes_on, is_asked = threading.Event(), threading.Event()

    def ask(path: str, descriptor: int) -> str | None:
        is_asked.set()
        goes_on.wait(30)
        return path

    signers = Signers(ask)
    results = [signers.begin("0", os.open(file, os.O_RDONLY))]
    assert is_asked.wait(30), "it is with the thread, and waits no more"
    results += [signers.begin(str(number), os.open(file, os.O_RDONLY)) for number in range(1, 4)]
    assert results[3].result(timeout=0) is None
    goes_on.set()
    assert [one.result(timeout=30) for one in results[:3]] == [Signature(subject=str(number)) for number in range(3)]
