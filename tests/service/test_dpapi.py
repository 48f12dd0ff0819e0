"""Windows keeps the secret of a sealed key: under Wine where there is one, and as its documentation has it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
from windows_python import WHY_NOT, is_there, windows_python

import mitmsec
from mitmsec.service.dpapi import ENTROPY, INVALID_DATA, Blob, Dpapi, Windows
from mitmsec.service.seal_keeper import SealFailed

PATH = str(Path(mitmsec.__path__[0]).parent)
SECRET = b"5" * 64
PREAMBLE = f"""
sys.path += ["Z:{PATH}"]
import mitmsec.service.dpapi as dpapi
from mitmsec.service.seal_keeper import SealFailed
SECRET = {SECRET!r}
def opens(credential):
    try:
        return dpapi.Dpapi().opened(credential) == SECRET
    except SealFailed as error:
        return str(error)
"""
SEALING = """
credential = dpapi.Dpapi().kept(SECRET)
told([credential.hex(), SECRET in credential, dpapi.Dpapi().kept(SECRET) != credential])
"""
OPENING = """
credential = bytes.fromhex(CREDENTIAL)
told(opens(credential))
told([opens(credential[:at] + bytes([credential[at] ^ 1]) + credential[at + 1:]) for at in (0, -1 % len(credential))])
told([opens(b""), opens(credential[:40]), opens(b"not a credential")])
dpapi.ENTROPY = b"another product"
told(opens(credential))
"""


@pytest.mark.skipif(not is_there(), reason=WHY_NOT)
def test_what_one_process_has_kept_another_opens_and_nobody_who_changes_it() -> None:
    """Two processes of a Windows Python."""
    ((credential, is_in_clear, is_salted),) = windows_python("dpapi-1.py", PREAMBLE + SEALING)
    assert (is_in_clear, is_salted) == (False, True)
    opened, changed, broken, elsewhere = windows_python(
        "dpapi-2.py", f"CREDENTIAL = {credential!r}\n{PREAMBLE}{OPENING}"
    )
    assert opened is True
    assert all("CryptUnprotectData: " in str(said) for said in (*changed, *broken, elsewhere))


# --- what Wine cannot show --------------------------------------------------------------------------------------------
class Crypt32:
    """Answers as is documented, with what it was asked in clear; `error` is why it fails."""

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.asked: list[tuple[str, bytes, bytes, int]] = []
        self.memory: dict[int, Any] = {}
        self.freed: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        def function(given: Any, text: None, entropy: Any, reserved: None, prompt: None, flags: int, out: Any) -> int:
            data, apart = (ctypes.string_at(blob._obj.data, blob._obj.size) for blob in (given, entropy))
            self.asked.append((name, data, apart, flags))
            if self.error:
                return 0
            answer = ctypes.create_string_buffer(data[::-1], len(data))
            self.memory[ctypes.addressof(answer)] = answer
            out._obj.data, out._obj.size = ctypes.addressof(answer), len(data)
            return 1

        return function

    def free(self, address: int) -> None:
        self.freed.append(self.memory[address].raw)

    @property
    def windows(self) -> Windows:
        return Windows(self, self.free, lambda: self.error)


def test_it_is_the_machines_scope_and_nobody_is_asked_on_a_screen() -> None:
    crypt32 = Crypt32()
    keeper = Dpapi(crypt32.windows)
    assert keeper.opened(keeper.kept(SECRET + b"1")) == SECRET + b"1"
    assert crypt32.asked == [
        ("CryptProtectData", SECRET + b"1", ENTROPY, 0x4 | 0x1),
        ("CryptUnprotectData", b"1" + SECRET, ENTROPY, 0x1),
    ]


def test_what_windows_hands_out_is_wiped_and_given_back() -> None:
    crypt32 = Crypt32()
    Dpapi(crypt32.windows).opened(SECRET)
    assert crypt32.freed == [bytes(len(SECRET))]


@pytest.mark.parametrize(("error", "why"), [(INVALID_DATA, "another machine"), (5, "Windows refuses")])
def test_a_refusal_is_told_with_windows_number(error: int, why: str) -> None:
    keeper = Dpapi(Crypt32(error).windows)
    with pytest.raises(SealFailed, match=rf"CryptUnprotectData: .*{why}.*error {error}"):
        keeper.opened(SECRET)
    with pytest.raises(SealFailed, match="CryptProtectData: "):
        keeper.kept(SECRET)


def test_elsewhere_there_is_no_such_keeper() -> None:
    with pytest.raises(OSError, match="not Windows"):
        Dpapi()


def test_a_blob_is_as_wide_as_in_windows_headers() -> None:
    assert ctypes.sizeof(Blob) == 16
