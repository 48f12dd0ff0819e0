"""A policy on its way between processes: what decides as one line of JSON, and the names of its lists behind it.

    {"rules": …, "lists": [{"name": "@banks.txt", "size_bytes": 24, "sha256": …}, …]} newline
    bank.example newline other.test  …the next list
    {"secrets": 612896} newline …       what was compiled for inspectors, where the policy names any that take long

Who is not asked about names reads the line, and is spared the lists; only workers read what is behind them.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mitmsec.core.host_lists import HostList
from mitmsec.core.policy import Policy

LISTED_BYTES_A_S = 2_000_000  # a tenth of what a core takes in
END = b"\n"  # no JSON of ours has one in it


def packed(policy: Policy, prepared: Mapping[str, bytes] | None = None) -> bytes:
    """All of it, with what was `prepared` for inspectors, by name. Raises LookupError where its names are not here."""
    away = [one.name for one in policy.lists if not one.is_here]
    if away:
        raise LookupError(f"the names of the list {away[0]} are not here")
    behind = (msgspec.json.encode({name: len(one) for name, one in prepared.items()}), END) if prepared else ()
    return b"".join(
        (policy.encoded, END, *(one.text.encode() for one in policy.lists), *behind, *(prepared or {}).values())
    )


def prepared_in(content: bytes, policy: Policy) -> dict[str, bytes]:
    """What was packed behind `policy`, which this content begins with. Raises ValueError."""
    rest = content[_line_bytes(content) + len(END) + sum(one.size_bytes for one in policy.lists) :]
    if not rest:
        return {}
    line, _, blobs = rest.partition(END)
    at, prepared = 0, {}
    for name, size_bytes in msgspec.json.decode(line, type=dict[str, int]).items():
        prepared[name] = blobs[at : at + size_bytes]
        at += size_bytes
    if at != len(blobs):
        raise ValueError(f"{len(blobs)} bytes were prepared where {at} are told")
    return prepared


def without_names(content: bytes) -> Policy:
    """What a packed policy says, its lists as references. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(memoryview(content)[: _line_bytes(content)], type=Policy)


def unpacked(content: bytes) -> Policy:
    """What was packed. Raises ValueError, of which msgspec.MsgspecError is one."""
    policy = without_names(content)
    begin, lists = _line_bytes(content) + len(END), []
    for one in policy.lists:
        end = begin + one.size_bytes
        lists.append(with_names(one, memoryview(content)[begin:end]))
        begin = end
    return msgspec.structs.replace(policy, lists=tuple(lists)) if lists else policy


def _line_bytes(content: bytes) -> int:
    end = content.find(END)
    return len(content) if end < 0 else end


def with_names(reference: HostList, text: bytes | memoryview) -> HostList:
    """Raises ValueError where that cannot be its text."""
    if len(text) != reference.size_bytes:
        raise ValueError(f"{len(text)} bytes are not the list {reference.name}, which has {reference.size_bytes}")
    return msgspec.structs.replace(reference, text=str(text, "ascii"))


def taking_in_s(policy: Policy) -> float:
    """How long a busy machine may need to make the names of its lists ready to be asked about."""
    return sum(one.size_bytes for one in policy.lists) / LISTED_BYTES_A_S
