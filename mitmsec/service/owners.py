"""Whose a connection is, as the gate is told: at once, or when the executable's hash is there.

A policy that selects by hash cannot decide without one: then it is waited for, and if it cannot be had, the gate does
what `on_failure` says. Any other policy decides the same with or without; then the hash is only for the record, and a
large executable's is waited for HASH_WAIT_S at its first connection.
"""

from __future__ import annotations

import asyncio

from mitmsec.core.model import Process
from mitmsec.core.policy import Policy
from mitmsec_redirect.processes import Owner

HASH_WAIT_S = 0.5  # less than the gate waits


def decides_by_hash(policy: Policy) -> bool:
    """Some application is selected by the hash of its executable."""
    return any(application.sha256 for application in policy.applications)


def told(owner: Owner) -> Process:
    """The process as far as it is known now."""
    return owner.hashed() if owner.sha256 is not None and owner.sha256.done() else owner.process


async def hashed(owner: Owner, *, must_have: bool) -> Process:
    """The process as it is to be told to the gate, its hash too if that comes in time; with `must_have`, ever."""
    if owner.sha256 is None:
        return owner.process
    try:
        async with asyncio.timeout(None if must_have else HASH_WAIT_S):
            await asyncio.shield(asyncio.wrap_future(owner.sha256))
    except TimeoutError:
        return owner.process
    return owner.hashed()
