"""Passwords of the console's accounts: Argon2id, and nothing else is kept of them."""

from __future__ import annotations

import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

LEAST_CHARACTERS, MOST_CHARACTERS = 12, 256
_HASHER = PasswordHasher(time_cost=3, memory_cost=64 << 10, parallelism=1)  # one lane: the console begins no threads
_NOBODYS = "$argon2id$v=19$m=65536,t=3,p=1$MDAwMDAwMDAwMDAwMDAwMA$" + "A" * 43


def hashed(password: str) -> str:
    """What is kept."""
    return _HASHER.hash(password)


def is_it(kept: str | None, password: str) -> bool:
    """Whether it is the password of this hash. Of no account (None) it is not, and to find that out takes as long."""
    try:
        return _HASHER.verify(kept or _NOBODYS, password) and kept is not None
    except (VerificationError, InvalidHashError):
        return False


def flaw(password: str, name: str) -> str:
    """Why somebody may not have this one; empty: they may."""
    if not LEAST_CHARACTERS <= len(password) <= MOST_CHARACTERS:
        return f"a password has {LEAST_CHARACTERS} to {MOST_CHARACTERS} characters"
    if name.lower() in password.lower() or len(set(password)) < 5:
        return "that is too easy to guess"
    return ""


def one_time() -> str:
    """For the first sign-in: 80 bits, readable."""
    word = secrets.token_hex(10)
    return "-".join(word[at : at + 5] for at in range(0, 20, 5))
