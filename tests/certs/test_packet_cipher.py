"""AES-128 by published examples."""

from __future__ import annotations

from mitmsec_certs.packet_cipher import Aes128

KEY = bytes.fromhex("9f50449e04a0e810283a1e9933adedd2")


def test_a_block_is_the_standards() -> None:
    """RFC 9001 appendix A.2: the mask of a header."""
    assert Aes128().block(KEY, bytes.fromhex("d1b1c98dd7689fb8ec11d242b123dc9b"))[:5].hex() == "437b9aec36"


def test_what_is_sealed_opens_and_nothing_else_does() -> None:
    """The GCM specification's test case 2: one block of zeroes."""
    key, nonce = bytes(16), bytes(12)
    sealed = bytes.fromhex("0388dace60b6a392f328c2b971b2fe78ab6e47d42cec13bdf53a67b21257bddf")
    assert Aes128().sealed(key, nonce, bytes(16), b"") == sealed
    assert Aes128().opened(key, nonce, sealed, b"") == bytes(16)
    assert Aes128().opened(key, nonce, sealed, b"more") is None
    assert Aes128().opened(key, nonce, sealed[:15], b"") is None
