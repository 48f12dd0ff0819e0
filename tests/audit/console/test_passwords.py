"""Passwords: what is kept of them, and which may be had."""

from __future__ import annotations

import pytest
from argon2 import PasswordHasher, extract_parameters

from mitmsec.audit.console import passwords


def test_what_is_kept_is_argon2id_as_strong_as_the_standard_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9106 §4: 64 MiB and 3 passes where memory is short; one lane, since the console begins no threads."""
    made = PasswordHasher(time_cost=3, memory_cost=64 << 10, parallelism=1)
    monkeypatch.setattr(passwords, "_HASHER", made)
    kept = passwords.hashed("four plain words here")
    found = extract_parameters(kept)
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=1$")
    assert (found.memory_cost, found.time_cost, found.parallelism) == (65536, 3, 1)
    assert extract_parameters(passwords._NOBODYS) == found, "to find out that there is no account takes as long"
    assert passwords.is_it(kept, "four plain words here")
    assert not passwords.is_it(kept, "four plain words")


def test_nobodys_password_is_none() -> None:
    assert not passwords.is_it(None, "")
    assert not passwords.is_it("no hash", "x")


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("four plain words", ""),
        ("short", "a password has 12 to 256 characters"),
        ("x" * 257, "a password has 12 to 256 characters"),
        ("aaaaaaaaaaaaaaaa", "that is too easy to guess"),
        ("I am Rosa, a reviewer", "that is too easy to guess"),
    ],
)
def test_a_password_is_long_and_not_ones_name(password: str, why: str) -> None:
    assert passwords.flaw(password, "rosa") == why


def test_one_time_passwords_are_good_and_never_the_same() -> None:
    made = {passwords.one_time() for _ in range(100)}
    assert len(made) == 100
    assert {passwords.flaw(one, "rosa") for one in made} == {""}
