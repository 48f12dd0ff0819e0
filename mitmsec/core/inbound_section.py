"""The `[[inbound]]` tables of a policy file: services whose certificate and key are known."""

from __future__ import annotations

from collections.abc import Callable

from mitmsec.core.known_service import KnownService
from mitmsec.core.model import Value
from mitmsec.core.names_section import read_patterns
from mitmsec.core.policyfile import Context, read_ports, unique_name
from mitmsec.core.toml_table import Table

MARK = "-----BEGIN"  # of a block of PEM


class Pair(Value, frozen=True):
    """What the files of one entry hold, or why they are none; see KnownService for the rest."""

    certificate_flaw: str | None = None
    key_flaw: str | None = None
    names: tuple[str, ...] = ()
    chain: tuple[bytes, ...] = ()
    sha256: str = ""
    not_after_s: int = 0
    key_bytes: int = 0


type ReadPair = Callable[[str, str], Pair]
"""The files `certificate` and `key`, as the policy names them. Never raises."""


def unread_pair(certificate: str, key: str) -> Pair:
    """For callers that cannot look into certificates."""
    return Pair()


def read_inbound(table: Table, context: Context, taken: dict[str, int], pair: ReadPair) -> KnownService:
    """`taken`: names of the entries before, with their lines."""
    name = unique_name(table, taken)
    certificate, key = file_named(table, "certificate"), file_named(table, "key")
    found = Pair() if certificate is None or key is None else pair(certificate, key)
    for flaw, blamed in ((found.certificate_flaw, "certificate"), (found.key_flaw, "key")):
        if flaw is not None:
            table.note(flaw, blamed)
    host = read_patterns(table, context)
    if found.chain and not host and not found.names and "host" not in table:
        table.note("names no host, so host has to", "certificate")
    service = KnownService(
        name=name,
        certificate=certificate or "",
        key=key or "",
        host=host,
        port=read_ports(table),
        names=found.names,
        chain=found.chain,
        sha256=found.sha256,
        not_after_s=found.not_after_s,
        key_bytes=found.key_bytes,
    )
    table.close()
    return service


def file_named(table: Table, key: str) -> str | None:
    """The file that is named there. A key that was put there itself stands in no error, nor anywhere else."""
    name = table.text(key, required=True)
    if name is None or not (MARK in name or "\n" in name):
        return name
    table.note("the name of a file is wanted, not what is in it", key)
    return None
