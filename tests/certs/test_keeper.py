"""Roots go into stores and out of them: read back, byte for byte, and also when somebody is killed in between."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from trust_stage import NOW, all_of, debian_tree, in_copy, keeper_of, looks_the_same, new_root, nss_home, some_root
from trust_stage import update as update_as_administrator

from mitmsec_certs.truststore.found import stores
from mitmsec_certs.truststore.host import Host, ToolFailed
from mitmsec_certs.truststore.journal import Journal, Phase
from mitmsec_certs.truststore.keeper import Became, Keeper, NotDone
from mitmsec_certs.truststore.plan import Put, Root, Run, Step, Store, certificate_entry
from mitmsec_certs.truststore.plans import plan_of

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Where stores lie that nobody else reads."""
    return tmp_path / "tree"


@pytest.fixture
def debian(tree: Path) -> Store:
    return debian_tree(tree)


@pytest.fixture
def firefox(tree: Path) -> Store:
    (store,) = stores([nss_home(tree / "home", ".mozilla/firefox/abc.default")], str(tree))
    return store


@pytest.fixture(params=["debian", "firefox"])
def store(request: pytest.FixtureRequest) -> Store:
    store: Store = request.getfixturevalue(request.param)
    return store


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "trust"


# --- in and out -------------------------------------------------------------------------------------------------------
@pytest.mark.checklist("K7")
def test_a_root_goes_in_and_out_and_the_store_is_what_it_was(store: Store, tree: Path, state: Path) -> None:
    keeper, journal = keeper_of(state)
    with looks_the_same(tree), journal.held():
        assert not keeper.holds(store, some_root())
        assert keeper.trust(store, some_root()).became is Became.ADDED
        assert keeper.holds(store, some_root())
        (entry,) = journal.entries()
        assert (entry.store, entry.root, entry.phase, entry.since) == (store, some_root(), Phase.TRUSTED, NOW)
        assert keeper.untrust(entry).became is Became.RESTORED
        assert not keeper.holds(store, some_root())
        assert journal.entries() == []


def test_twice_is_as_once(store: Store, tree: Path, state: Path) -> None:
    keeper, journal = keeper_of(state)
    with journal.held():
        keeper.trust(store, some_root())
        with looks_the_same(tree, state):
            assert keeper.trust(store, some_root()).became is Became.IS_THERE


def test_two_roots_go_out_in_any_order(store: Store, tree: Path, state: Path) -> None:
    first, second = new_root(), new_root()
    keeper, journal = keeper_of(state)
    with journal.held():
        before = Host().entries(store, plan_of(store, some_root()))
        keeper.trust(store, first)
        keeper.trust(store, second)
        older, newer = journal.entries()
        assert keeper.untrust(older).became is Became.REMOVED, "the other one has changed the store since"
        assert (keeper.holds(store, first), keeper.holds(store, second)) == (False, True)
        keeper.untrust(newer)
        assert Host().entries(store, plan_of(store, some_root())) == before


def test_a_store_that_nobody_can_look_at_is_not_taken_for_one_that_is_no_more(
    firefox: Store, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would trust us still, and the note of it would be gone."""
    keeper, journal = keeper_of(state)
    real = os.lstat

    def lstat(path: str) -> os.stat_result:
        if path == firefox.place:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    with journal.held():
        keeper.trust(firefox, some_root())
        (entry,) = journal.entries()
        with monkeypatch.context() as patched:
            patched.setattr(os, "lstat", lstat)
            with pytest.raises(NotDone, match="Permission denied"):
                keeper.untrust(entry)
        assert journal.entries() == [entry]
        assert keeper.untrust(entry).became is Became.RESTORED


def test_what_somebody_else_put_there_is_not_ours_to_remove(store: Store, tmp_path: Path, state: Path) -> None:
    somebody, others = keeper_of(tmp_path / "another state")
    with others.held():
        somebody.trust(store, some_root())
    keeper, journal = keeper_of(state)
    with journal.held():
        assert keeper.trust(store, some_root()).became is Became.IS_THERE_BY_OTHERS
        assert journal.entries() == []


def test_what_others_change_meanwhile_stays(debian: Store, tree: Path, state: Path) -> None:
    theirs = new_root()
    keeper, journal = keeper_of(state)
    with journal.held():
        keeper.trust(debian, some_root())
        (tree / "usr/local/share/ca-certificates/theirs.crt").write_text(theirs.pem)
        update_as_administrator(debian)
        (entry,) = journal.entries()
        assert keeper.untrust(entry).became is Became.REMOVED
    assert not keeper.holds(debian, some_root())
    assert keeper.holds(debian, theirs)
    left = [path for path in all_of(tree) if some_root().label in path]
    links = [path for path in (tree / "etc/ssl/certs").iterdir() if not path.exists()]
    assert (left, links) == ([], []), "neither a file of ours nor a link that leads nowhere"


def test_what_an_administrator_had_only_laid_there_is_told_when_it_takes_effect(
    debian: Store, tree: Path, state: Path
) -> None:
    waiting = new_root()
    (tree / "usr/local/share/ca-certificates/waiting.crt").write_text(waiting.pem)
    keeper, journal = keeper_of(state)
    with looks_the_same(tree), journal.held():
        assert keeper.trust(debian, some_root()).others == {certificate_entry(waiting.sha256)}
        assert keeper.untrust(*journal.entries()).others == {certificate_entry(waiting.sha256)}


def test_a_root_that_somebody_has_taken_out_is_put_in_again(debian: Store, tree: Path, state: Path) -> None:
    keeper, journal = keeper_of(state)
    with journal.held():
        keeper.trust(debian, some_root())
        (tree / f"usr/local/share/ca-certificates/{some_root().label}.crt").unlink()
        update_as_administrator(debian)
        assert not keeper.holds(debian, some_root())
        assert keeper.trust(debian, some_root()).became is Became.ADDED
        assert keeper.holds(debian, some_root())


def test_a_profile_that_was_deleted_takes_its_root_with_it(firefox: Store, state: Path) -> None:
    keeper, journal = keeper_of(state)
    with journal.held():
        keeper.trust(firefox, some_root())
        subprocess.run(["rm", "-r", firefox.place], check=True)
        assert keeper.untrust(*journal.entries()).became is Became.GONE
        assert journal.entries() == []


def test_a_database_that_a_browser_has_open_is_not_replaced_beneath_it(firefox: Store, state: Path) -> None:
    keeper, journal = keeper_of(state)
    database = Path(firefox.place, "cert9.db")
    with journal.held():
        keeper.trust(firefox, some_root())
        browser, file = sqlite3.connect(database), database.stat().st_ino
        try:
            browser.execute("SELECT count(*) FROM sqlite_master").fetchone()
            assert keeper.untrust(*journal.entries()).became is Became.REMOVED
            assert database.stat().st_ino == file
        finally:
            browser.close()
        assert not keeper.holds(firefox, some_root())


# --- failures ---------------------------------------------------------------------------------------------------------
class Failing(Host):
    """A machine on which the step with this number fails, or is the last thing that we live to see."""

    def __init__(self, at: int, *, kills: bool = False) -> None:
        self.at, self.kills = at, kills
        self.steps = 0

    def perform(self, store: Store, step: Step) -> None:
        self.steps += 1
        if self.steps == self.at:
            if self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            self.at = -1
            raise ToolFailed("the tool ended with status 1: as the test wants it")
        super().perform(store, step)


@pytest.mark.parametrize("at", [1, 2])
def test_what_fails_halfway_is_undone(debian: Store, tree: Path, state: Path, at: int) -> None:
    keeper, journal = keeper_of(state, Failing(at))
    with looks_the_same(tree), journal.held():
        with pytest.raises(NotDone, match="as the test wants it") as failed:
            keeper.trust(debian, some_root())
        assert failed.value.undone
        assert journal.entries() == []


class Interrupted(Host):
    """Somebody presses ^C while the tool runs."""

    def perform(self, store: Store, step: Step) -> None:
        super().perform(store, step)
        if isinstance(step, Run):
            raise KeyboardInterrupt


def test_who_is_interrupted_leaves_the_store_as_it_was(store: Store, tree: Path, state: Path) -> None:
    keeper, journal = keeper_of(state, Interrupted())
    with looks_the_same(tree), journal.held():
        with pytest.raises(KeyboardInterrupt):
            keeper.trust(store, some_root())
        assert journal.entries() == []


class Forgetful(Host):
    """A tool that says it has done it, and has not."""

    def perform(self, store: Store, step: Step) -> None:
        if not isinstance(step, Run):
            super().perform(store, step)


def test_a_tool_that_does_nothing_is_not_believed(debian: Store, tree: Path, state: Path) -> None:
    keeper, journal = keeper_of(state, Forgetful())
    with looks_the_same(tree), journal.held():
        with pytest.raises(NotDone, match="not there after it was added"):
            keeper.trust(debian, some_root())


def test_a_removal_that_leaves_the_root_is_not_believed(debian: Store, tree: Path, state: Path) -> None:
    keeper, journal = keeper_of(state)
    with journal.held():
        keeper.trust(debian, some_root())
        (tree / "etc/ssl/certs/something").write_text("others have changed the store")
        (entry,) = journal.entries()
        forgetful, _ = keeper_of(state, Forgetful())
        with pytest.raises(NotDone, match="still there after it was removed") as failed:
            forgetful.untrust(entry)
        assert not failed.value.undone
        (entry,) = journal.entries()
        assert entry.phase is Phase.REMOVING, "for `clean` to go on with"
        assert keeper.untrust(entry).became is Became.REMOVED


def test_a_database_with_a_primary_password_is_left_as_it_was(tree: Path, state: Path) -> None:
    (store,) = stores([nss_home(tree / "home", ".mozilla/firefox/abc.default", password="secret")], str(tree))
    keeper, journal = keeper_of(state)
    with looks_the_same(tree), journal.held():
        with pytest.raises(NotDone, match="certutil ended with status"):
            keeper.trust(store, some_root())


# --- killed -----------------------------------------------------------------------------------------------------------
def killed(keeper: Keeper, journal: Journal, *, removing: bool, store: Store, root: Root) -> bool:
    """Whether a child that does it is killed, as its machine wants it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with journal.held():
                if removing:
                    keeper.untrust(*journal.entries())
                else:
                    keeper.trust(store, root)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("at", [1, 2, 3])
def test_who_is_killed_while_adding_leaves_what_is_undone_later(store: Store, tree: Path, state: Path, at: int) -> None:
    """Before each step, and (3) after the last one of Debian's."""
    keeper, journal = keeper_of(state)
    with looks_the_same(tree):
        was_killed = killed(*keeper_of(state, Failing(at, kills=True)), removing=False, store=store, root=some_root())
        assert was_killed == (at <= len(plan_of(store, some_root()).adding))
        with journal.held():
            (entry,) = journal.entries()
            assert entry.phase is (Phase.ADDING if was_killed else Phase.TRUSTED)
            assert keeper.untrust(entry).became is Became.RESTORED
            assert not keeper.holds(store, some_root())
            journal.vanish()
        assert not state.exists()


def test_a_folder_that_was_not_there_is_not_there_again(debian: Store, tree: Path, state: Path) -> None:
    (tree / "usr/local/share/ca-certificates").rmdir()
    keeper, journal = keeper_of(state)
    with looks_the_same(tree):
        assert killed(*keeper_of(state, Failing(2, kills=True)), removing=False, store=debian, root=some_root())
        with journal.held():
            assert keeper.untrust(*journal.entries()).became is Became.RESTORED


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_who_is_killed_while_taking_out_leaves_the_rest_for_later(
    debian: Store, tree: Path, state: Path, at: int
) -> None:
    keeper, journal = keeper_of(state)
    with journal.held():
        keeper.trust(debian, some_root())
    theirs = tree / "usr/local/share/ca-certificates/theirs.crt"
    theirs.write_text(new_root().pem)
    assert killed(*keeper_of(state, Failing(at, kills=True)), removing=True, store=debian, root=some_root())
    with journal.held():
        assert keeper.untrust(*journal.entries()).became is Became.REMOVED
    assert not keeper.holds(debian, some_root())
    assert theirs.exists()


@pytest.mark.parametrize("place", ["etc/ssl/certs/server.pem", "usr/local/share/ca-certificates/waiting.crt"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_what_an_administrator_lays_there_after_a_kill_is_not_taken_away_with_ours(
    debian: Store, tree: Path, state: Path, place: str, at: int
) -> None:
    keeper, journal = keeper_of(state)
    killed(*keeper_of(state, Failing(at, kills=True)), removing=False, store=debian, root=some_root())
    (tree / place).write_text(new_root().pem)
    with journal.held():
        assert keeper.untrust(*journal.entries()).became is Became.REMOVED
    assert not keeper.holds(debian, some_root())
    assert (tree / place).exists()
    assert [path for path in all_of(tree) if some_root().label in path] == []


def test_not_even_where_the_kill_came_while_it_was_put_back(debian: Store, tree: Path, state: Path) -> None:
    keeper, journal = keeper_of(state)
    with journal.held():
        keeper.trust(debian, some_root())
        (entry,) = journal.entries()
        journal.write(msgspec.structs.replace(entry, phase=Phase.RESTORING))
    (tree / "etc/ssl/certs/server.pem").write_text("theirs")
    with journal.held():
        assert keeper.untrust(*journal.entries()).became is Became.REMOVED
    assert (tree / "etc/ssl/certs/server.pem").exists()


def test_what_was_kept_by_somebody_killed_before_the_first_note_is_dropped(debian: Store, state: Path) -> None:
    keeper, journal = keeper_of(state)
    with journal.held():
        journal.keep(journal.new(), {"x": b"half"})
        keeper.trust(debian, some_root())
        assert [entry.number for entry in journal.entries()] == [1]


def test_a_tool_that_outlives_us_is_waited_for(tree: Path, state: Path) -> None:
    """It has the journal's lock from us: nobody puts back what it still writes."""
    code = f"""
import os, signal, sys
from pathlib import Path
from mitmsec_certs.truststore.host import Host
from mitmsec_certs.truststore.journal import Journal
from mitmsec_certs.truststore.plan import Run, Store, StoreName, Layout
store = Store(name=StoreName.SYSTEM, layout=Layout.DEBIAN, place="/nowhere")
script = "echo begun; exec >&- 2>&-; kill -9 $PPID; sleep 1"
with Journal(Path({str(state)!r})).held():
    Host().perform(store, Run(argv=("sh", "-c", script)))
"""
    state.mkdir()
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with Journal(state).held():
        assert time.monotonic() - began >= 1


# --- the machine's own stores, in a copy of it ------------------------------------------------------------------------
@needs_root
@pytest.mark.checklist("K7")
def test_our_root_alone_goes_out_of_the_machines_own_store_where_others_have_changed_it() -> None:
    """With Debian's own tool and all hooks that are installed here: alone, it would leave the root in Java's store.

    That the store is what it was where nobody has, test_trusting_clients shows.
    """

    def story() -> None:
        system = next((store for store in stores([]) if store.name == "system"), None)
        if system is None:
            return print("no store of Debian's or RHEL's layout here")
        keeper, journal = keeper_of(Path("/var/lib/mitmsec-test"))
        with journal.held():
            keeper.trust(system, some_root())
            Host().perform(system, Put(path="/usr/local/share/ca-certificates/theirs.crt", content=new_root().pem))
            assert keeper.untrust(*journal.entries()).became is Became.REMOVED
            plan = plan_of(system, some_root())
            assert not plan.own & Host().entries(system, plan)

    in_copy(story)
