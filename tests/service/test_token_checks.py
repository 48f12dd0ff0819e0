"""`doctor` tells whether the issuing key's token can be found, without asking it for anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ca_house import CaHouse
from softhsm import SoftHsm, needs_softhsm

from mitmsec.core.token_module import FILE
from mitmsec.service import ca_work, rehearsal
from mitmsec.service.token_checks import token_checks

pytestmark = [pytest.mark.root, needs_softhsm]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaHouse:
    monkeypatch.setattr(ca_work, "announce", lambda state: None)
    monkeypatch.setattr(rehearsal, "flaw_of", lambda state, folder: None)  # tests/service/test_rehearsal.py has it
    return CaHouse(tmp_path)


def test_a_ca_whose_key_is_in_no_token_and_none_at_all(house: CaHouse) -> None:
    assert token_checks(house.state) == []
    assert house.with_word("init").exit_code == 0
    assert token_checks(house.state) == []


def test_what_the_signer_will_miss_is_told_before_it_does(house: CaHouse, softhsm: SoftHsm) -> None:
    assert house.with_word("init", *softhsm.options("issuing")).exit_code == 0
    (check,) = token_checks(house.state)
    assert check.ok
    assert check.detail == softhsm.uri("issuing")
    softhsm.tokens.rename(softhsm.folder / "gone")
    (check,) = token_checks(house.state)
    assert not check.ok
    assert not check.optional
    assert str(softhsm.tokens) in check.detail
    (softhsm.folder / "gone").rename(softhsm.tokens)
    os.chown(house.state.ca / FILE, 1, 1)
    (check,) = token_checks(house.state)
    assert (check.ok, "not root's alone" in check.detail) == (False, True)
    (house.state.ca / FILE).unlink()
    (check,) = token_checks(house.state)
    assert (check.ok, "no module is allowed" in check.detail) == (False, True)


def test_a_module_that_others_can_write(house: CaHouse, softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    assert house.with_word("init", *softhsm.options("issuing")).exit_code == 0
    content = (house.state.ca / FILE).read_text()
    anybodys = softhsm.folder / "m.so"
    anybodys.touch()
    module = softhsm.module.path
    (house.state.ca / FILE).write_text(content.replace(module, str(anybodys)))
    about = house.state.ca / "about.json"
    about.write_text(about.read_text().replace(module, str(anybodys)))
    (check,) = token_checks(house.state)
    assert (check.ok, "others than root" in check.detail) == (False, True)


def test_a_damaged_ca_is_not_called_a_tokens_fault(house: CaHouse) -> None:
    assert house.with_word("init").exit_code == 0
    (house.state.ca / "root.pem").write_text("junk")
    (check,) = token_checks(house.state)
    assert (check.name, check.ok, "root.pem: not a certificate" in check.detail) == ("CA", False, True)
