"""The `[[client_certificate]]` tables of a policy file."""

from __future__ import annotations

from mitmsec.core.identity import Identity
from mitmsec.core.inbound_section import Pair, ReadPair, file_named
from mitmsec.core.policyfile import Context, unique_name
from mitmsec.core.toml_table import Table


def read_identity(table: Table, context: Context, pair: ReadPair) -> Identity:
    """Its name is noted in `context.identities`, for rules to refer to."""
    name = unique_name(table, context.identities)
    certificate, key = file_named(table, "certificate"), file_named(table, "key")
    found = Pair() if certificate is None or key is None else pair(certificate, key)
    for flaw, blamed in ((found.certificate_flaw, "certificate"), (found.key_flaw, "key")):
        if flaw is not None:
            table.note(flaw, blamed)
    identity = Identity(
        name=name,
        certificate=certificate or "",
        key=key or "",
        chain=found.chain,
        sha256=found.sha256,
        not_after_s=found.not_after_s,
        key_bytes=found.key_bytes,
    )
    table.close()
    return identity
