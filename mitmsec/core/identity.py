"""Certificates and keys that programs are known by to origins which ask for one (`[[client_certificate]]`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mitmsec.core.model import Value

DAY_S = 86_400


class Identity(Value, frozen=True):
    """One entry. Of the key there is nothing in it but how long the file is."""

    name: str
    certificate: str = ""
    """The file, as the policy names it; likewise `key`."""
    key: str = ""
    chain: tuple[bytes, ...] = ()
    """Certificates (DER) as an origin is shown them, the program's own first."""
    sha256: str = ""
    """Of the program's own certificate, hex."""
    not_after_s: int = 0
    """The end of its validity, Unix seconds."""
    key_bytes: int = 0
    """How much of the file with all keys is its own; they stand at its beginning, in the order of the entries."""


def doubts(identities: Iterable[Identity], used: Collection[str], now_s: int) -> list[str]:
    """A sentence for each thing that is valid and yet not as it looks. `used`: those that rules name."""
    sentences = []
    for identity in identities:
        if identity.name not in used:
            sentences.append(f'[[client_certificate]] "{identity.name}": no rule names it')
        if identity.not_after_s and identity.not_after_s <= now_s:
            days = (now_s - identity.not_after_s) // DAY_S
            since = "less than a day" if not days else f"{days} day{'s' if days > 1 else ''}"
            sentences.append(f'[[client_certificate]] "{identity.name}": it has expired for {since}')
    return sentences
