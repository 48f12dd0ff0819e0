"""Whose roots are never believed."""

from __future__ import annotations

import pytest

from mitmsec_certs.known_interceptors import interceptor

SUPERFISH = "b6fe9151402bad1c06d7e66db67a26aa7356f2e6c644dbcf9f98968ff632e1b7"


def test_a_certificate_is_known_by_its_hash_whatever_it_is_called() -> None:
    assert interceptor(SUPERFISH, "") == interceptor(SUPERFISH, "Honest CA") == "Superfish"


@pytest.mark.parametrize("name", ["eDellRoot", "edellroot", " EDELLROOT "])
def test_another_certificate_of_the_same_maker_is_known_by_its_name(name: str) -> None:
    assert interceptor("00" * 32, name) == "eDellRoot"


@pytest.mark.parametrize("name", ["", "Honest CA", "not eDellRoot"])
def test_all_others_are_not(name: str) -> None:
    assert interceptor("00" * 32, name) is None
