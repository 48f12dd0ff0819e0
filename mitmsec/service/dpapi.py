"""The secret of a sealed key, kept by Windows: the Data Protection API, in the machine's scope.

    kept      secret ── CryptProtectData(CRYPTPROTECT_LOCAL_MACHINE, entropy) ──► credential, a file like any other
    opened    credential ── CryptUnprotectData(entropy) ──► secret

Windows encrypts it with a key of this machine, so the file is worth nothing on another one, or in a backup. The scope
is the machine's, as a service runs as nobody who logs in. So *every account of this machine* may have it opened that
can read the file: the file's access list keeps them out. (A credential of systemd's only root can open.) The entropy is
no secret; it keeps others' protected data from being taken for ours.

There is no service on Windows yet, so nothing calls this but its tests, under Wine. It was not run on Windows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import Structure, addressof, byref, c_int, c_uint32, c_void_p, c_wchar_p, create_string_buffer
from typing import Any

from mitmsec.core.model import Value
from mitmsec.service.seal_keeper import SealFailed

UI_FORBIDDEN, LOCAL_MACHINE = 0x1, 0x4  # CRYPTPROTECT_…, wincrypt.h
ENTROPY = b"mitmsec-ca"
INVALID_DATA = 13  # ERROR_INVALID_DATA


class Blob(Structure):
    """CRYPT_DATA_BLOB."""

    _fields_ = (("size", c_uint32), ("data", c_void_p))


class Windows(Value, frozen=True):
    """What is called: the DLL, how memory is given back, and why the last call failed."""

    crypt32: Any
    free: Callable[[int], object]
    last_error: Callable[[], int]


class Dpapi:
    """A SealKeeper. Raises OSError where there is no Windows, unless something stands for it."""

    def __init__(self, windows: Windows | None = None) -> None:
        self._windows = windows or _loaded()

    def kept(self, secret: bytes) -> bytes:
        """`secret` as it may lie on a disk. Raises SealFailed."""
        return self._called("CryptProtectData", secret, UI_FORBIDDEN | LOCAL_MACHINE)

    def opened(self, credential: bytes) -> bytes:
        """The secret in what `kept` made on this machine. Raises SealFailed."""
        return self._called("CryptUnprotectData", credential, UI_FORBIDDEN)

    def _called(self, name: str, data: bytes, flags: int) -> bytes:
        here, entropy = (create_string_buffer(one, len(one) or 1) for one in (data, ENTROPY))
        given, apart, answer = Blob(len(data), addressof(here)), Blob(len(ENTROPY), addressof(entropy)), Blob(0, None)
        function = getattr(self._windows.crypt32, name)
        if not function(byref(given), None, byref(apart), None, None, flags, byref(answer)):
            raise SealFailed(f"{name}: {_why(self._windows.last_error())}")
        try:
            return ctypes.string_at(answer.data, answer.size)
        finally:
            ctypes.memset(answer.data, 0, answer.size)  # Windows does not, and it may be the secret
            self._windows.free(answer.data)


def _why(number: int) -> str:
    told = "it was made on another machine, or is damaged" if number == INVALID_DATA else "Windows refuses"
    return f"{told} (error {number})"


def _loaded() -> Windows:
    if not hasattr(ctypes, "WinDLL"):
        raise OSError("this is not Windows")
    crypt32, kernel32 = ctypes.WinDLL("crypt32", use_last_error=True), ctypes.WinDLL("kernel32")
    for function in (crypt32.CryptProtectData, crypt32.CryptUnprotectData):
        function.restype = c_int
        function.argtypes = (c_void_p, c_wchar_p, c_void_p, c_void_p, c_void_p, c_uint32, c_void_p)
    kernel32.LocalFree.restype, kernel32.LocalFree.argtypes = c_void_p, (c_void_p,)
    return Windows(crypt32, kernel32.LocalFree, ctypes.get_last_error)  # type: ignore[attr-defined]
