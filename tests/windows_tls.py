"""Windows' own TLS client in a Windows Python: WinHTTP over Schannel, and what crypt32 says of a chain."""

from __future__ import annotations

from pathlib import Path

import mitmsec
import mitmsec_certs

CONTENT, REFUSED = 200, 12157  # ERROR_WINHTTP_SECURE_CHANNEL_ERROR, whatever the reason is
# CERT_TRUST_STATUS of a chain (wincrypt.h): IS_PARTIAL_CHAIN, IS_OFFLINE_REVOCATION, HAS_NOT_PERMITTED_NAME_CONSTRAINT,
# HAS_EXCLUDED_NAME_CONSTRAINT.
NO_ROOT, LIST_OUT_OF_REACH, NAME_NOT_PERMITTED, NAME_EXCLUDED = 0x10000, 0x1000000, 0x4000, 0x8000
# Each process under Wine spends a second on taking over the machine's roots, if there are any.
WITHOUT_ROOTS = "mount -t tmpfs none /etc/ssl/certs"
PATHS = [f"Z:{Path(package.__path__[0]).parent}" for package in (mitmsec, mitmsec_certs)]
_CODE = """
import ctypes
sys.path += PATHS
from mitmsec_certs.truststore.windows_roots import KEYS, Location, WindowsRoots

http = ctypes.WinDLL("winhttp", use_last_error=True)
crypt32 = ctypes.WinDLL("crypt32", use_last_error=True)
for name in ("WinHttpOpen", "WinHttpConnect", "WinHttpOpenRequest"):
    getattr(http, name).restype = ctypes.c_void_p
for name in ("CertOpenStore", "CertCreateCertificateContext"):
    getattr(crypt32, name).restype = ctypes.c_void_p
P, W, U = ctypes.c_void_p, ctypes.c_wchar_p, ctypes.c_uint32

def winhttp(host, port, path="/", *, lists=False):
    "200, or an error's number. `lists`: WINHTTP_OPTION_ENABLE_FEATURE, WINHTTP_ENABLE_SSL_REVOCATION."
    session = http.WinHttpOpen(W("test"), 1, None, None, 0)
    connection = http.WinHttpConnect(P(session), W(host), port, 0)
    request = http.WinHttpOpenRequest(P(connection), W("GET"), W(path), None, None, None, 0x00800000)
    try:
        if lists and not http.WinHttpSetOption(P(request), 79, ctypes.byref(U(1)), 4):
            raise ctypes.WinError(ctypes.get_last_error())
        if not http.WinHttpSendRequest(P(request), None, 0, None, 0, 0, P(0)):
            return ctypes.get_last_error()
        if not http.WinHttpReceiveResponse(P(request), None):
            return ctypes.get_last_error()
        return 200
    finally:
        for handle in (request, connection, session):
            http.WinHttpCloseHandle(P(handle))

class Wanted(ctypes.Structure):
    "CERT_CHAIN_PARA: no usage."
    _fields_ = (("size", U), ("type", U), ("count", U), ("names", P))

def flaws(chain, *, lists=False):
    "CERT_TRUST_STATUS of the chain that crypt32 builds; `lists`: CERT_CHAIN_REVOCATION_CHECK_CHAIN_EXCLUDE_ROOT."
    store = P(crypt32.CertOpenStore(P(2), 0, None, 0, None))
    contexts = [P(crypt32.CertCreateCertificateContext(0x10001, der, len(der))) for der in chain]
    for context in contexts:
        crypt32.CertAddCertificateContextToStore(store, context, 4, None)
    found, wanted = P(), Wanted(ctypes.sizeof(Wanted), 0, 0, None)
    order = 0x40000000 if lists else 0
    if not crypt32.CertGetCertificateChain(
        None, contexts[0], None, store, ctypes.byref(wanted), order, None, ctypes.byref(found)
    ):
        raise ctypes.WinError(ctypes.get_last_error())
    return ctypes.cast(found, ctypes.POINTER(U))[1]
"""
CLIENT = f"PATHS = {PATHS!r}\n{_CODE}"
