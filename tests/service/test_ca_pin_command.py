"""A CA whose issuing key is in a token, from `ca init` to another PIN, as an operator has it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ca_house import CaHouse
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from enterprise import answer_to, between, certified, root, rsa_key
from softhsm import PIN, SoftHsm, needs_softhsm

from mitmsec.service import ca_journal, ca_work, rehearsal
from mitmsec_certs import ceremony

pytestmark = [pytest.mark.root, needs_softhsm]
ROOT = root()
POLICY = between(ROOT)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaHouse:
    monkeypatch.setattr(ca_work, "announce", lambda state: None)
    monkeypatch.setattr(rehearsal, "flaw_of", lambda state, folder: None)  # tests/service/test_rehearsal.py has it
    return CaHouse(tmp_path)


@pytest.fixture
def own(house: CaHouse, softhsm: SoftHsm) -> CaHouse:
    """One with a CA of its own, whose issuing key was made in the token."""
    done = house.with_word("init", "--permit", "corp.example", *softhsm.options("issuing"))
    assert done.exit_code == 0, done.output
    return house


def laid(house: CaHouse, name: str, data: bytes) -> str:
    path = house.folder / name
    path.write_bytes(data)
    return str(path)


@pytest.mark.checklist("K2")
def test_the_key_is_made_in_the_token_signs_leaves_and_is_in_no_file(own: CaHouse, softhsm: SoftHsm) -> None:
    leaf, issuing = map(x509.load_der_x509_certificate, own.leaf("www.corp.example"))
    leaf.verify_directly_issued_by(issuing)
    told = own.shown()
    assert told["token"] == softhsm.uri("issuing")
    assert "in a token: pkcs11:token=mitmsec%20test;object=issuing" in own.mitmsec("show").stdout
    every = [path.read_bytes() for path in own.state.folder.rglob("*") if path.is_file()]
    assert not any(b"PRIVATE KEY" in content for content in every)
    assert sum(PIN.encode() in content for content in every) == 1
    assert (own.state.ca / "issuing.key").stat().st_mode & 0o777 == 0o600


def test_the_signer_s_user_needs_no_code_of_ours_that_it_may_be_kept_from(
    house: CaHouse, softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where all of it lies below a home folder that nobody else may enter: nothing is imported after the change."""
    become = ceremony._become

    def become_and_forget(uid: int, gid: int) -> None:
        become(uid, gid)
        sys.meta_path.clear()  # of the child

    monkeypatch.setattr(ceremony, "_become", become_and_forget)
    done = house.with_word("init", *softhsm.options("issuing"))
    assert done.exit_code == 0, done.output
    assert house.with_word("rotate").exit_code == 0


def test_it_is_renewed_in_the_same_token_and_never_in_a_file(own: CaHouse, softhsm: SoftHsm) -> None:
    before, key = own.shown(), own.issuing_key()
    assert own.with_word("rotate").exit_code == 0
    after = own.shown()
    assert after["root"] == before["root"]
    assert after["token"].startswith(softhsm.uri("issuing").split("?")[0] + "-")
    assert own.issuing_key() != key
    assert own.with_word("rotate", "--new-root", root_file="2.p12").exit_code == 0
    assert own.mitmsec("rotate", "--take-over").exit_code == 0
    assert own.shown()["token"] not in (before["token"], after["token"])
    x509.load_der_x509_certificate(own.leaf("www.corp.example")[0])


def test_a_key_that_is_there_already_is_taken_if_it_is_p256(house: CaHouse, softhsm: SoftHsm) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    softhsm.bring(rsa_key(), "rsa", "b1")
    softhsm.bring(key, "there", "b2")
    assert house.mitmsec("init", "--csr", str(house.folder / "request.pem")).exit_code == 0
    waits = (house.state.ca / "next" / "issuing.key").read_bytes()
    done = house.with_word("init", *softhsm.options("rsa"))
    assert done.exit_code == 1
    assert "is not P-256" in done.stderr
    assert (house.state.ca / "next" / "issuing.key").read_bytes() == waits
    assert house.mitmsec("show").exit_code == 1
    assert house.with_word("init", *softhsm.options("there")).exit_code == 0
    assert house.shown()["issuing"]["subject"]


def test_a_request_for_a_key_in_the_token_and_its_answer(house: CaHouse, softhsm: SoftHsm) -> None:
    request = house.folder / "request.pem"
    done = house.mitmsec("init", "--csr", str(request), "--permit", "corp.example", *softhsm.options("asked"))
    assert done.exit_code == 0, done.output
    assert "the key stays in the token" in done.stdout
    answer = laid(house, "answer.pem", answer_to(request.read_bytes(), POLICY))
    done = house.mitmsec("import", answer, laid(house, "above.pem", POLICY.pem + ROOT.pem))
    assert done.exit_code == 0, done.output
    assert (house.shown()["kind"], house.shown()["token"]) == ("imported", softhsm.uri("asked"))
    assert house.leaf("www.corp.example")


def test_an_enterprise_s_ca_whose_key_was_in_the_token_before(house: CaHouse, softhsm: SoftHsm) -> None:
    sub = certified("Corp Interception", POLICY, key=rsa_key())
    softhsm.bring(sub.key, "corp")
    files = (laid(house, "sub.pem", sub.pem), laid(house, "above.pem", POLICY.pem + ROOT.pem))
    done = house.mitmsec("import", *files, *softhsm.options("none"))
    assert done.exit_code == 1
    assert "no such private key" in done.stderr
    assert house.mitmsec("show").exit_code == 1
    done = house.mitmsec("import", *files, *softhsm.options("corp"))
    assert done.exit_code == 0, done.output
    assert house.issuing_key() == sub.spki
    assert house.leaf("www.corp.example")
    with_key = house.mitmsec("import", *files, "--key", laid(house, "k.pem", sub.key_pem()), *softhsm.options("corp"))
    assert with_key.exit_code != 0


def test_another_pin_is_told_and_tried_before_it_is_kept(own: CaHouse, softhsm: SoftHsm) -> None:
    softhsm.change_pin("other-13579")
    kept = (own.state.ca / "issuing.key").read_bytes()
    source = ("--pin-source", str(softhsm.pin_file))
    done = own.mitmsec("pin", *source)
    assert done.exit_code == 1
    assert "refuses the PIN" in done.stderr
    assert (own.state.ca / "issuing.key").read_bytes() == kept
    softhsm.write_pin("other-13579")
    done = own.mitmsec("pin", *source)
    assert done.exit_code == 0, done.output
    assert own.leaf("www.corp.example")
    assert [seen.operation for seen in ca_journal.left(own.state)][-1] == "pin_changed"


def test_a_key_in_a_file_has_no_pin(house: CaHouse) -> None:
    assert house.mitmsec("pin").exit_code == 1
    assert house.with_word("init").exit_code == 0
    done = house.mitmsec("pin")
    assert done.exit_code == 1
    assert "in no token" in done.stderr
