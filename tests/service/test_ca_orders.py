"""What the commands that change the CA share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mitmsec.service import ca_orders, ca_work
from mitmsec.service.ca_work import RootFileExists
from mitmsec.service.refusals import CannotRun
from mitmsec.service.sealing import SealFailed
from mitmsec.service.state import State
from mitmsec_certs.ceremony import CeremonyFailed

pytestmark = pytest.mark.root


def raising(error: Exception) -> Callable[[], object]:
    def work() -> object:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (CeremonyFailed("the passphrase is another"), 1, "the passphrase is another"),
        (RootFileExists("/mnt/root.p12"), 2, "/mnt/root.p12 exists already"),
        (SealFailed("systemd-creds is not on this machine"), 3, "systemd-creds is not on this machine"),
        (OSError(5, "Input/output error", "/mnt/root.p12"), 125, "Input/output error: /mnt/root.p12"),
        (OSError(28, "No space left on device"), 3, "make room"),
        (CannotRun("the supervisor did not answer", "read its log", 125), 125, "read its log"),
    ],
)
def test_what_goes_wrong_is_told_with_the_status_that_says_whose_fault_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception, status: int, words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        ca_orders.doing(State(tmp_path / "state"), raising(error))
    assert ended.value.code == status
    assert words in capsys.readouterr().err


def test_what_is_done_is_announced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(ca_work, "announce", told.append)
    state = State(tmp_path / "state")
    ca_orders.doing(state, lambda: told.append("work"))
    assert told == ["work", state]


def test_the_record_names_who_called_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_UID", raising=False)
    assert ca_orders.who() == "root"
    monkeypatch.setenv("SUDO_UID", "54321")
    assert ca_orders.who() == "54321"
    monkeypatch.setenv("SUDO_UID", "nobody")
    assert ca_orders.who() == "root"


def test_a_link_in_place_of_the_roots_file_is_in_the_way(tmp_path: Path) -> None:
    os.symlink("/nowhere", tmp_path / "root.p12")
    with pytest.raises(SystemExit):
        ca_orders.require_free(tmp_path / "root.p12")
    ca_orders.require_free(tmp_path / "free.p12")


def test_a_file_is_written_only_where_none_is_and_a_folder_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked before any passphrase is."""
    ca_orders.require_free(tmp_path / "new")
    (tmp_path / "old").symlink_to("nowhere")
    for file, words in (("old", "exists already"), ("no/such/folder", "there is no folder")):
        with pytest.raises(SystemExit) as ended:
            ca_orders.require_free(tmp_path / file, "--csr")
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert ("--csr" in said, words in said) == (True, True)
