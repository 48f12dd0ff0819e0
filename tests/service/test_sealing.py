"""The secret of a sealed key is systemd's to keep: made, opened, and of no use elsewhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mitmsec.service import sealing
from mitmsec.service.seal_keeper import SealFailed
from mitmsec.service.state import State
from mitmsec_certs import ca_folder
from mitmsec_certs.ca_folder import SEAL

NEEDS_SYSTEMD = "systemd-creds is not installed (Debian: systemd)"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-creds") is None or os.geteuid() != 0, reason=NEEDS_SYSTEMD)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    """With a key of the test's own in place of the machine's, which stays as it is."""
    monkeypatch.setenv("SYSTEMD_CREDENTIAL_SECRET", str(tmp_path / "machine.secret"))
    state = State(tmp_path / "state")
    state.ca.mkdir(parents=True)
    return state


@needs_systemd
def test_what_is_sealed_opens_here_and_holds_no_secret_in_clear(state: State) -> None:
    assert sealing.secret_of(state) is None
    credential, secret = sealing.new_seal()
    assert len(bytes.fromhex(secret.decode())) == 32
    assert secret not in credential
    assert sealing.new_seal()[1] != secret
    (state.ca / SEAL).write_bytes(credential)
    assert sealing.is_sealed(state)
    assert sealing.secret_of(state) == secret
    with sealing.descriptors(state) as (opens,):
        assert os.pread(opens, 4096, 0) == secret
        assert not os.get_inheritable(opens)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opens)


@needs_systemd
def test_it_does_not_open_on_another_machine_nor_under_another_name(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (state.ca / SEAL).write_bytes(sealing.new_seal()[0])
    monkeypatch.setattr(sealing, "NAME", "mitmsec-other")
    with pytest.raises(SealFailed, match="systemd-creds decrypt: "):
        sealing.secret_of(state)
    monkeypatch.undo()
    monkeypatch.setenv("SYSTEMD_CREDENTIAL_SECRET", str(tmp_path / "another.secret"))
    with pytest.raises(SealFailed, match="systemd-creds decrypt: "):
        sealing.secret_of(state)
    with pytest.raises(SealFailed), sealing.descriptors(state):
        pass


def test_a_machine_without_systemd_says_so(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "PROGRAM", "no-such-program")
    with pytest.raises(SealFailed, match="is not on this machine"):
        sealing.new_seal()


def test_one_that_does_not_answer_is_not_waited_for(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sealing, "PROGRAM", str(slow))
    monkeypatch.setattr(sealing, "DEADLINE_S", 0.1)
    with pytest.raises(SealFailed, match="did not answer"):
        sealing.new_seal()


def test_the_file_is_the_one_that_the_ca_knows() -> None:
    assert sealing.SEAL == ca_folder.SEAL


def test_what_is_in_clear_needs_no_descriptor(state: State) -> None:
    with sealing.descriptors(state) as opens:
        assert opens == ()
