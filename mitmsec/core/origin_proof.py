"""What an origin shows to prove who it is, and what is found out about that."""

from __future__ import annotations

from enum import StrEnum

from mitmsec.core.model import Value


class Proof(Value, frozen=True):
    """A handshake's certificates. `errors`: OpenSSL's (X509_V_ERR_…), in the order in which they were met."""

    errors: tuple[int, ...] = ()
    chain: tuple[bytes, ...] = ()
    """DER, the origin's own first, up to the root where one was found; empty for a resumed session."""
    staple: bytes = b""
    """An OCSP answer about the first that the origin sent along; empty where it sent none."""
    resumed: bool = False
    """It goes on from a handshake whose proof held."""


class Standing(StrEnum):
    """What its issuer says about a certificate today."""

    GOOD = "good"
    REVOKED = "revoked"
    UNKNOWN = "unknown"  # nobody could be asked, or the answer is worth nothing
    UNASKED = "unasked"  # the certificate names nobody who could be


class Status(Value, frozen=True):
    """`text`: where that is from, or why it is not known. `until_s`: how long it may be repeated, Unix seconds."""

    standing: Standing
    text: str = ""
    until_s: int = 0
