"""What commands do to the CA, with the users and processes of a real state."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from mitmsec.core.messages import Role
from mitmsec.service import ca_journal, ca_work
from mitmsec.service.accounts import account_of
from mitmsec.service.ca_work import RootFileExists
from mitmsec.service.state import State
from mitmsec_certs.ca_facts import facts
from mitmsec_certs.ceremony import CeremonyFailed
from mitmsec_certs.constraints import written
from mitmsec_certs.keystore import open_keystore

NOW_S = int(time.time())
PASSPHRASE = "correct horse battery"
LIMIT = written(["corp.example"], [])

pytestmark = pytest.mark.root


@pytest.fixture
def state(tmp_path: Path) -> State:
    state = State(tmp_path / "state")
    state.make()
    return state


def test_a_ca_of_our_own_is_made_by_the_signers_user_and_its_roots_file_by_root(state: State, tmp_path: Path) -> None:
    seen = ca_work.make_own(state, LIMIT, PASSPHRASE, tmp_path / "root.p12", "alice", NOW_S)
    found = facts(state.ca, NOW_S)
    assert found is not None
    assert (found.kind, found.issuing.permitted) == ("own", ("corp.example",))
    assert (seen.operation, seen.sha256, seen.user) == ("initialised", found.root.sha256, "alice")
    assert ca_journal.left(state) == [seen]
    signer = account_of(Role.SIGNER)
    assert {path.stat().st_uid for path in state.ca.rglob("*")} == {signer.uid}
    root_file = (tmp_path / "root.p12").stat()
    assert (root_file.st_uid, stat.S_IMODE(root_file.st_mode)) == (0, 0o600)


@pytest.mark.checklist("K1")
def test_two_fresh_installs_have_no_key_in_common(tmp_path: Path) -> None:
    keys = set()
    for name in ("a", "b"):
        state = State(tmp_path / name)
        state.make()
        ca_work.make_own(state, LIMIT, PASSPHRASE, tmp_path / f"{name}.p12", "root", NOW_S)
        found = facts(state.ca, NOW_S)
        assert found is not None
        keys |= {found.root.sha256, found.issuing.sha256, (state.ca / "issuing.key").read_bytes()}
    assert len(keys) == 6


@pytest.mark.checklist("K2")
def test_nobody_but_the_signers_user_can_read_the_key(state: State, tmp_path: Path) -> None:
    """Not the gate's, not a worker's, not another user of the machine; certificates anybody can."""
    ca_work.make_own(state, LIMIT, PASSPHRASE, tmp_path / "root.p12", "root", NOW_S)

    def reads(uid: int, name: str) -> bool:
        pid = os.fork()
        if pid == 0:
            os.chdir(state.ca)  # so that it is these files that keep them off, and no folder above
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            try:
                os.close(os.open(name, os.O_RDONLY))
            except OSError:
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    others = [account_of(role).uid for role in (Role.GATE, Role.WORKER, Role.RECORDER)] + [12345]
    assert [reads(uid, "root.pem") for uid in others] == [True] * 4
    assert [reads(uid, "issuing.key") for uid in others] == [False] * 4
    assert reads(account_of(Role.SIGNER).uid, "issuing.key")


def test_no_file_is_overwritten_and_then_nothing_changes(state: State, tmp_path: Path) -> None:
    (tmp_path / "root.p12").write_text("precious")
    with pytest.raises(RootFileExists, match=r"root\.p12"):
        ca_work.make_own(state, LIMIT, PASSPHRASE, tmp_path / "root.p12", "root", NOW_S)
    with pytest.raises(RootFileExists):
        ca_work.write_root_file(tmp_path / "root.p12", b"")
    assert (tmp_path / "root.p12").read_text() == "precious"
    assert facts(state.ca, NOW_S) is None


def test_an_automatic_ca_gives_way_and_its_root_stays_trusted_for_a_day(state: State, tmp_path: Path) -> None:
    os.chown(state.ca, 0, 0)
    old = open_keystore(state.ca, "host", NOW_S)
    for path in (state.ca, *state.ca.iterdir()):
        os.chown(path, account_of(Role.SIGNER).uid, account_of(Role.SIGNER).gid)
    ca_work.make_own(state, LIMIT, PASSPHRASE, tmp_path / "root.p12", "root", NOW_S)
    found = facts(state.ca, NOW_S)
    assert found is not None
    assert found.trusted == (found.root.sha256, old.root_sha256)


def test_what_cannot_be_put_in_place_is_not_on_record(state: State, tmp_path: Path) -> None:
    (state.ca / "next").write_text("in the way")
    with pytest.raises((CeremonyFailed, OSError)):
        ca_work.make_own(state, LIMIT, PASSPHRASE, tmp_path / "root.p12", "root", NOW_S)
    assert ca_journal.left(state) == []
    assert facts(state.ca, NOW_S) is None


@pytest.mark.parametrize("is_there", [False, True])
def test_the_file_of_a_root_that_came_to_nothing_goes_and_that_of_one_that_serves_never(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    real = ca_work.put_in_place

    def fails(*words: Any, **more: Any) -> None:
        if is_there:
            real(*words, **more)
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(ca_work, "put_in_place", fails)
    with pytest.raises(OSError, match="disk full"):
        ca_work.make_own(state, LIMIT, PASSPHRASE, tmp_path / "root.p12", "root", NOW_S)
    assert (tmp_path / "root.p12").exists() is is_there


def test_a_root_file_that_the_disk_has_no_room_for_is_not_left_there(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        try:
            ca_work.write_root_file(tmp_path / "root.p12", bytes(1000))
        except OSError as error:
            os._exit(error.errno or 0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_what_fails_forgets_no_request_that_waits_for_its_answer(state: State, tmp_path: Path) -> None:
    """Its key is in the hands of an enterprise's CA already."""
    ca_work.make_own(state, LIMIT, PASSPHRASE, tmp_path / "root.p12", "root", NOW_S)
    other_state = State(tmp_path / "other")
    other_state.make()
    ca_work.make_own(other_state, LIMIT, PASSPHRASE, tmp_path / "other.p12", "root", NOW_S)
    ca_work.ask(state, LIMIT, tmp_path / "csr.pem", "root", NOW_S)
    asked = ca_work.asked_key(state)
    own, other = ((tmp_path / name).read_bytes() for name in ("root.p12", "other.p12"))
    for root_file, word, now_s in (
        (own, "another passphrase", NOW_S),
        (other, PASSPHRASE, NOW_S),
        (own, PASSPHRASE, 4 * 10**9),
    ):
        with pytest.raises(CeremonyFailed):
            ca_work.renew_issuing(state, root_file, word, "root", now_s)
    with pytest.raises(FileNotFoundError):
        ca_work.make_own(state, LIMIT, PASSPHRASE, tmp_path / "no/folder", "root", NOW_S, waits=True)
    with pytest.raises(FileNotFoundError):
        ca_work.ask(state, LIMIT, tmp_path / "no/folder", "root", NOW_S)
    assert ca_work.asked_key(state) == asked
    ca_work.renew_issuing(state, own, PASSPHRASE, "root", NOW_S)


def test_two_commands_at_once_wait_for_each_other(state: State, tmp_path: Path) -> None:
    """Between the key that one prepares and its certificate the other would take the key away."""
    pids = []
    for name in ("a", "b", "c"):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with ca_work.alone(state):
                    ca_work.make_own(state, LIMIT, PASSPHRASE, tmp_path / f"{name}.p12", name, NOW_S)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
    found = facts(state.ca, NOW_S)
    assert found is not None
    assert found.root.sha256 == ca_journal.left(state)[-1].sha256
    assert len(list((state.ca / "retired").iterdir())) == 2


def test_that_a_ca_was_removed_is_noted_and_where_there_is_none_nothing_is(state: State, tmp_path: Path) -> None:
    with ca_work.removing(state, "alice", NOW_S):
        pass
    assert ca_journal.left(state) == []
    ca_work.make_own(state, LIMIT, PASSPHRASE, tmp_path / "root.p12", "root", NOW_S)
    with ca_work.removing(state, "alice", NOW_S):
        shutil.rmtree(state.ca)
    assert [(seen.operation, seen.user) for seen in ca_journal.left(state)] == [
        ("initialised", "root"),
        ("removed", "alice"),
    ]
