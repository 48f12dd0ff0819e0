"""A CA in a token serves only if the signer can reach that token from its jail; else everything stays as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ca_house import CaHouse
from enterprise import certified, root
from softhsm import SoftHsm, needs_softhsm

from mitmsec.service import ca_journal, ca_work
from mitmsec.service.rehearsal import flaw_of

pytestmark = [pytest.mark.root, needs_softhsm]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaHouse:
    monkeypatch.setattr(ca_work, "announce", lambda state: None)
    return CaHouse(tmp_path)


def children() -> str:
    return "".join(path.read_text() for path in Path("/proc/self/task").glob("*/children"))


def hidden(softhsm: SoftHsm) -> list[str]:
    """What `ca init` needs, without what the signer does."""
    words = list(softhsm.options("issuing"))
    return words[: words.index("--pkcs11-path")] + words[words.index("--pkcs11-env") :]


def test_what_only_the_command_can_reach_does_not_take_over(house: CaHouse, softhsm: SoftHsm) -> None:
    assert house.with_word("init").exit_code == 0
    before, running = house.shown(), children()
    above = root()
    sub = certified("Corp Interception", above)
    softhsm.bring(sub.key, "issuing")
    (house.folder / "sub.pem").write_bytes(sub.pem + above.pem)
    done = house.mitmsec("import", str(house.folder / "sub.pem"), *hidden(softhsm))
    assert done.exit_code == 1
    assert "the module fails (GeneralError)" in done.stderr  # it cannot read its configuration
    assert "the signer sees /usr, what --pkcs11-path names" in done.stderr
    assert house.shown() == before
    assert house.mitmsec("import", str(house.folder / "sub.pem"), *softhsm.options("issuing")).exit_code == 0
    assert house.shown()["token"] == softhsm.uri("issuing")
    assert children() == running


def test_a_root_of_ours_leaves_no_file_where_the_signer_cannot_sign(house: CaHouse, softhsm: SoftHsm) -> None:
    done = house.with_word("init", *hidden(softhsm))
    assert done.exit_code == 1
    assert "--pkcs11-path" in done.stderr
    assert house.mitmsec("show").exit_code == 1
    assert not (house.folder / "root.p12").exists()
    assert ca_journal.left(house.state) == []
    assert house.with_word("init", *softhsm.options("issuing")).exit_code == 0


def test_a_signer_that_ends_instead_of_an_answer_is_told(house: CaHouse, softhsm: SoftHsm) -> None:
    assert house.with_word("init", *softhsm.options("issuing")).exit_code == 0
    assert flaw_of(house.state, house.state.ca) is None
    os.chown(house.state.ca, 1, 1)
    assert "owned by uid 1" in (flaw_of(house.state, house.state.ca) or "")
