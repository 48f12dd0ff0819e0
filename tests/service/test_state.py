"""The state directory: each folder has its owner, and one supervisor holds it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mitmsec.audit.store import FILE_NAME
from mitmsec.core.messages import Role
from mitmsec.service.accounts import account_of
from mitmsec.service.state import State, StateBusy, StateRefused


@pytest.mark.root
def test_folders_belong_to_whom_they_should_whatever_they_were(tmp_path: Path) -> None:
    (tmp_path / "state" / "ca").mkdir(parents=True, mode=0o755)
    state = State(tmp_path / "state")
    state.make()
    state.make()
    found = {
        path.name: (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode))
        for path in (
            state.folder,
            state.run,
            state.jail,
            state.ca,
            state.log,
            state.policies,
            state.compiled,
            state.quarantine,
        )
    }
    assert found == {
        "state": (0, 0o711),
        "run": (0, 0o711),
        "jail": (0, 0o755),
        "ca": (account_of(Role.SIGNER).uid, 0o711),
        "log": (account_of(Role.RECORDER).uid, 0o2750),
        "policies": (0, 0o2750),
        "quarantine": (account_of(Role.RECORDER).uid, 0o700),
        "compiled": (0, 0o700),
    }


def test_a_state_has_one_name_for_its_whole_life(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.run.mkdir()
    name = state.identity()
    assert len(name) == 8
    assert State(tmp_path).identity() == name


def test_one_supervisor_holds_it(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.run.mkdir()
    lock = state.hold()
    with pytest.raises(StateBusy):
        State(tmp_path).hold()
    os.close(lock)
    os.close(State(tmp_path).hold())


def test_a_lock_that_was_removed_meanwhile_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`clean --purge` removes it while it holds it; who had opened it just before would else hold what nobody sees."""
    state = State(tmp_path)
    state.run.mkdir()
    opened = os.open

    def just_before(*arguments: object, **options: object) -> int:
        descriptor = opened(*arguments, **options)  # type: ignore[arg-type]
        state.lock.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", just_before)
    with pytest.raises(StateBusy):
        state.hold()
    monkeypatch.undo()
    os.close(state.hold())


def test_an_empty_log_beside_a_ca_was_emptied(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert state.log_file == state.log / FILE_NAME
    assert not state.log_was_emptied()
    for folder in (state.log, state.ca):
        folder.mkdir()
    state.log_file.write_bytes(b"")
    assert not state.log_was_emptied()  # a first start that was killed
    (state.ca / "root.pem").write_text("root")
    assert state.log_was_emptied()
    wal = state.log / f"{FILE_NAME}-wal"
    wal.write_bytes(b"events")
    assert not state.log_was_emptied()
    wal.unlink()
    state.log_file.write_bytes(b"events")
    assert not state.log_was_emptied()
    state.log_file.unlink()
    assert not state.log_was_emptied()  # moved away, as the remedy says


def made(tmp_path: Path) -> State:
    state = State(tmp_path / "state")
    state.make()
    return state


def refused(state: State) -> str:
    with pytest.raises(StateRefused) as caught:
        state.make()
    assert "only root" in caught.value.remedy
    return caught.value.reason


@pytest.mark.root
@pytest.mark.parametrize("name", ["", "run", "ca", "log", "run/jail"])
def test_a_link_is_never_followed(tmp_path: Path, name: str) -> None:
    state = made(tmp_path)
    target = tmp_path / "victim"
    target.mkdir(mode=0o755)
    path = state.folder / name
    path.rename(tmp_path / "old")
    path.symlink_to(target)
    if name == "":  # what lies behind the link looks right
        (target / "run").mkdir()
    assert "symbolic link" in refused(state)
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


@pytest.mark.root
@pytest.mark.parametrize("name", ["", "run", "ca", "log", "run/jail"])
def test_what_belongs_to_somebody_else_is_refused(tmp_path: Path, name: str) -> None:
    state = made(tmp_path)
    os.chown(state.folder / name, 1000, 1000)
    assert "belongs to user 1000" in refused(state)
    assert (state.folder / name).stat().st_uid == 1000


@pytest.mark.root
@pytest.mark.parametrize(("mode", "gid"), [(0o777, 0), (0o702, 0), (0o770, 1000), (0o1777, 0)])
@pytest.mark.parametrize("name", ["", "run", "ca", "log"])
def test_what_others_may_write_to_is_refused(tmp_path: Path, name: str, mode: int, gid: int) -> None:
    state = made(tmp_path)
    os.chown(state.folder / name, 0, gid)
    (state.folder / name).chmod(mode)
    assert "written to by others" in refused(state)


@pytest.mark.root
def test_a_file_in_a_folders_place_is_refused(tmp_path: Path) -> None:
    state = made(tmp_path)
    state.ca.rmdir()
    state.ca.write_text("")
    assert "not a folder" in refused(state)


@pytest.mark.root
@pytest.mark.parametrize(("uid", "mode", "why"), [(1000, 0o755, "belongs to user 1000"), (0, 0o777, "by others")])
def test_a_folder_in_which_others_could_exchange_it_is_refused(tmp_path: Path, uid: int, mode: int, why: str) -> None:
    (tmp_path / "home" / "deep").mkdir(parents=True)
    os.chown(tmp_path / "home", uid, uid)
    (tmp_path / "home").chmod(mode)
    state = State(tmp_path / "home" / "deep" / "state")
    assert why in refused(state)
    assert not state.folder.exists()


@pytest.mark.root
def test_the_home_of_who_called_sudo_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", 1000, 1000)
    monkeypatch.setenv("SUDO_UID", "1000")
    State(tmp_path / "home" / "state").make()


@pytest.mark.root
@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["passwd"], "not a state directory: it holds passwd"),
        (["run", "etc", "home"], "not a state directory: it holds etc"),
        (["log", "lib"], "not a state directory: it holds lib"),
    ],
    ids=["/etc", "/", "/var"],
)
def test_a_folder_with_other_things_in_it_keeps_its_mode(tmp_path: Path, names: list[str], why: str) -> None:
    """`--state /` would otherwise close it for everybody."""
    folder = tmp_path / "state"
    for name in names:
        (folder / name).mkdir(parents=True, mode=0o755)
    folder.chmod(0o755)
    assert why in refused(State(folder))
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())} == {0o755}
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.root
def test_nothing_is_changed_before_all_has_been_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "run").symlink_to(tmp_path)
    assert "symbolic link" in refused(State(folder))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


@pytest.mark.root
def test_a_state_in_which_somebody_keeps_a_file_goes_on(tmp_path: Path) -> None:
    state = made(tmp_path)
    state.identity()
    (state.folder / "policy.toml").write_text("")
    state.make()


@pytest.mark.root
@pytest.mark.parametrize("link", ["ours to theirs", "theirs"])
def test_a_link_that_others_could_turn_elsewhere_is_refused(tmp_path: Path, link: str) -> None:
    """In a folder for everybody: a user's link to a folder of root's, and one of root's to that."""
    (tmp_path / "safe").mkdir(mode=0o755)
    public = tmp_path / "public"
    public.mkdir()
    public.chmod(0o1777)
    (public / "theirs").symlink_to(tmp_path / "safe")
    os.lchown(public / "theirs", 1000, 1000)
    (tmp_path / "ours to theirs").symlink_to("public/theirs")
    way = tmp_path / link if link != "theirs" else public / "theirs"
    assert "belongs to user 1000" in refused(State(way / "state"))
    assert not list((tmp_path / "safe").iterdir())


@pytest.mark.root
def test_a_link_of_our_own_will_do_and_a_circle_of_them_ends(tmp_path: Path) -> None:
    (tmp_path / "there" / "deep").mkdir(parents=True)
    (tmp_path / "here").symlink_to("there/deep/..")
    State(tmp_path / "here" / "state").make()
    assert (tmp_path / "there" / "state" / "run").is_dir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(OSError, match="symbolic links"):
        State(tmp_path / "circle" / "state").make()
