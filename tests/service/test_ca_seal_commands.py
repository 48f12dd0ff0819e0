"""`mitmsec ca seal` and `unseal`: how the key lies on the disk, and who can still use it."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from ca_house import CaHouse
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from softhsm import PIN, SoftHsm, needs_softhsm

from mitmsec.channel import Channel, pair
from mitmsec.core.messages import Fault, SignerReady, SignerSettings
from mitmsec.service import ca_journal, ca_work, rehearsal, sealing
from mitmsec.service.signer import Signer

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        shutil.which("systemd-creds") is None, reason="systemd-creds is not installed (Debian: systemd)"
    ),
]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaHouse:
    """One without a CA, and with a key of the test's in place of the machine's."""
    monkeypatch.setattr(ca_work, "announce", lambda state: None)
    monkeypatch.setattr(rehearsal, "flaw_of", lambda state, folder: None)  # tests/service/test_rehearsal.py has it
    monkeypatch.setenv("SYSTEMD_CREDENTIAL_SECRET", str(tmp_path / "machine.secret"))
    return CaHouse(tmp_path)


@pytest.fixture
def own(bare: CaHouse) -> CaHouse:
    """One with a CA of its own."""
    assert bare.with_word("init", "--permit", "corp.example").exit_code == 0
    return bare


def key_file(house: CaHouse) -> bytes:
    return (house.state.ca / "issuing.key").read_bytes()


def answer(house: CaHouse, opens: tuple[int, ...]) -> object:
    """What a signer says that is started with these descriptors."""

    async def story() -> object:
        control, _keep = pair()
        recorder, theirs = pair()
        signer = Signer(Channel(control, [SignerSettings]))
        fds = [theirs.detach(), *map(os.dup, opens)]
        said = await signer.start(SignerSettings(folder=str(house.state.ca)), fds)
        recorder.close()
        await signer.stop()
        control.close()
        _keep.close()
        return said

    os.chown(house.state.ca, 0, 0)  # the signer is this process here
    for path in house.state.ca.rglob("*"):
        os.chown(path, 0, 0)
    return asyncio.run(story())


@pytest.mark.checklist("K2")
def test_a_sealed_key_is_on_no_disk_in_clear_and_the_signer_alone_gets_what_opens_it(own: CaHouse) -> None:
    key = serialization.load_pem_private_key(key_file(own), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    scalar = key.private_numbers().private_value.to_bytes(32)
    done = own.mitmsec("seal")
    assert done.exit_code == 0, done.output
    assert "ca rotate" in done.stderr
    assert b"ENCRYPTED" in key_file(own)
    secret = sealing.secret_of(own.state)
    assert secret is not None
    every = [path.read_bytes() for path in own.state.folder.rglob("*") if path.is_file()]
    assert not any(scalar in content or secret in content for content in every)
    assert own.shown()["is_sealed"]
    assert "sealed with this machine's key" in own.mitmsec("show").stdout
    assert [seen.operation for seen in ca_journal.left(own.state)] == ["initialised", "sealed"]
    refused = answer(own, ())
    assert isinstance(refused, Fault)
    assert "was not brought" in refused.detail
    with sealing.descriptors(own.state) as opens:
        assert isinstance(answer(own, opens), SignerReady)


def test_what_is_made_under_a_seal_is_sealed_from_its_birth(own: CaHouse) -> None:
    own.mitmsec("seal")
    before = own.shown()
    assert own.with_word("rotate").exit_code == 0
    assert b"ENCRYPTED" in key_file(own)
    assert own.shown()["issuing"] != before["issuing"]
    assert own.with_word("rotate", "--new-root", root_file="2.p12").exit_code == 0
    assert b"ENCRYPTED" in (own.state.ca / "next" / "issuing.key").read_bytes()
    assert own.mitmsec("rotate", "--take-over").exit_code == 0
    with sealing.descriptors(own.state) as opens:
        assert isinstance(answer(own, opens), SignerReady)


def test_unsealed_it_is_as_it_was(own: CaHouse) -> None:
    before = key_file(own)
    own.mitmsec("seal")
    assert own.mitmsec("unseal").exit_code == 0
    assert key_file(own) == before
    assert not own.shown()["is_sealed"]
    assert own.mitmsec("unseal").exit_code == 1
    assert own.issuing_key()


def test_it_is_sealed_once(own: CaHouse) -> None:
    own.mitmsec("seal")
    before = key_file(own)
    done = own.mitmsec("seal")
    assert done.exit_code == 1
    assert "sealed already" in done.stderr
    assert key_file(own) == before


def test_on_another_machine_nothing_can_be_done_with_it(
    own: CaHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.mitmsec("seal")
    before = key_file(own)
    monkeypatch.setenv("SYSTEMD_CREDENTIAL_SECRET", str(tmp_path / "another.secret"))
    for command in (["unseal"], ["rotate", "--new-root"]):
        done = own.with_word(*command, root_file="2.p12") if command[0] == "rotate" else own.mitmsec(*command)
        assert done.exit_code == 3
        assert "systemd-creds decrypt" in done.stderr
    assert key_file(own) == before


def test_a_crash_between_seal_and_key_leaves_a_ca_that_opens(own: CaHouse) -> None:
    """The seal is there, the key still in clear."""
    clear = key_file(own)
    own.mitmsec("seal")
    (own.state.ca / "issuing.key").write_bytes(clear)
    with sealing.descriptors(own.state) as opens:
        assert isinstance(answer(own, opens), SignerReady)


@needs_softhsm
@pytest.mark.checklist("K2")
def test_of_a_key_in_a_token_the_pin_is_sealed(bare: CaHouse, softhsm: SoftHsm) -> None:
    house = bare
    assert house.with_word("init", *softhsm.options("issuing")).exit_code == 0
    done = house.mitmsec("seal")
    assert done.exit_code == 0, done.output
    assert "the PIN of the issuing key's token is sealed" in done.stderr
    assert not any(PIN.encode() in path.read_bytes() for path in house.state.folder.rglob("*") if path.is_file())
    assert "its PIN is sealed" in house.mitmsec("show").stdout
    assert house.with_word("rotate").exit_code == 0
    assert not any(PIN.encode() in path.read_bytes() for path in house.state.folder.rglob("*") if path.is_file())
    assert house.mitmsec("unseal").exit_code == 0
    assert PIN.encode() in key_file(house)


@pytest.mark.parametrize("what", ["issuing.key", "next/issuing.key"])
def test_what_a_kill_left_in_clear_is_told_and_the_same_order_seals_it(own: CaHouse, what: str) -> None:
    assert own.with_word("rotate", "--new-root", root_file="2.p12").exit_code == 0
    file = own.state.ca / what
    clear = file.read_bytes()
    own.mitmsec("seal")
    file.write_bytes(clear)
    file.with_name("issuing.key.new").write_bytes(b"half of a key")
    (own.state.ca / "seal.cred.new").touch()
    assert not own.shown()["is_sealed"]
    assert "in clear" in own.mitmsec("show").stdout
    done = own.mitmsec("seal")
    assert done.exit_code == 0, done.output
    assert own.shown()["is_sealed"]
    assert b"ENCRYPTED" in file.read_bytes()
    with sealing.descriptors(own.state) as opens:
        assert isinstance(answer(own, opens), SignerReady)


def test_without_a_ca_there_is_nothing_to_seal(tmp_path: Path) -> None:
    assert CaHouse(tmp_path).mitmsec("seal").exit_code == 1
