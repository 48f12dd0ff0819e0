"""What dead owners left behind, found by name and removed: cgroups, pinned hooks, tables, diverters, folders, trust.

`reap` runs at each start and takes only what nobody needs any more: while a command of a dead supervisor lives and its
policy says `closed`, its hook or table stays and keeps denying. A dead service's hook stays until the next one has
taken over (`succeed`). `clean` is an order: everything goes, the network opens. Only a folder whose roots a living
process was told of stays as long as that lives, for it could verify nobody any more; with `purge` it goes, too.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from mitmsec.core.model import Value
from mitmsec.service import ended_trust, left_diverters, left_tables, survivors
from mitmsec.service.ground import release
from mitmsec.service.state import State
from mitmsec_redirect import bpffs
from mitmsec_redirect.cgroup import SessionCgroup, leftovers
from mitmsec_redirect.connect_hook import reap as unpin

PIDS_TOLD = 3


class Removed(Value, frozen=True):
    """One thing that was removed, or could not be, or must not be yet."""

    what: str  # cgroup | hook | table | diverter | folder | mount | trust | log | keys
    name: str
    problem: str = ""
    kept: str = ""  # for whom it stays


def reap(state: State) -> list[Removed]:
    """Remove the remains of runs whose command has ended. Call with the state's lock held."""
    busy = {_session(cgroup) for cgroup in _ours(state) if cgroup.is_populated()}
    keep = [cgroup.path.name for cgroup in _ours(state) if _session(cgroup) in busy]
    empty = {cgroup.path.name for cgroup in _ours(state)} - {*keep}
    done = [*_tables(state, keep=keep), *_diverters(state, empty.__contains__)]
    done += [one for cgroup in _ours(state) if _session(cgroup) not in busy for one in _remove(state, cgroup)]
    done += [_drop(folder) for folder in _runs(state) if folder.name not in busy]
    return done + _trusting(ended_trust.withdraw_ended(state))


def succeed(state: State, live: Collection[str]) -> list[Removed]:
    """Remove what a killed service has pinned, now that another one is at work: until then it denied for it."""
    runs = {_session(cgroup) for cgroup in _ours(state)}
    orphans = [pins for pins in _folders(state.bpf) if pins.name not in runs and pins.name not in live]
    return [_attempt("hook", pins.name, lambda pins=pins: unpin(pins)) for pins in orphans]


def clean(state: State, *, purge: bool, purge_ca: bool = False, user: str = "root") -> list[Removed]:
    """Remove the remains of all runs, and the CA from trust stores; with `purge` log and keys too, with `purge_ca` the
    keys. `user` has ordered it.

    Call with the state's lock held.
    """
    removed = [*_tables(state), *_diverters(state)]
    removed += [done for cgroup in _ours(state) for done in _remove(state, cgroup)]
    removed += [_attempt("hook", pins.name, lambda pins=pins: unpin(pins)) for pins in _folders(state.bpf)]
    removed += [_drop(folder, purge=purge) for folder in _runs(state)]
    if bpffs.is_mounted(state.bpf):
        removed.append(_attempt("mount", str(state.bpf), lambda: bpffs.unmount(state.bpf)))
    state.control.unlink(missing_ok=True)
    removed += _trusting(_withdrawn(state, user))
    for folder, what, goes in (
        (state.log, "log", purge),
        (state.quarantine, "quarantine", purge),
        (state.review, "review", purge),
        (state.policies, "policies", purge),
        (state.compiled, "compiled", purge),
        (state.ca, "keys", purge or purge_ca),
    ):
        if goes and folder.exists():
            removed.append(_attempt(what, str(folder), lambda folder=folder: _remove_all(folder)))
    return removed


def _remove_all(folder: Path) -> None:
    """Of a CA first what says that one is there: half of one, after a kill, would keep everything from starting."""
    for root in (folder / "next/root.pem", folder / "root.pem"):  # as in mitmsec_certs.ca_folder, which is not loaded
        root.unlink(missing_ok=True)
    shutil.rmtree(folder)


def vanish(state: State) -> list[Removed]:
    """What is left of a purged state: identity, supervisor's log, lock.

    Call with the state's lock held, and with nothing `remaining`.
    """
    removed = [_attempt("folder", str(state.run), lambda: shutil.rmtree(state.run))]
    with contextlib.suppress(OSError):  # somebody keeps other things in it
        state.folder.rmdir()
    return removed


def _trusting(done: list[tuple[str, str]]) -> list[Removed]:
    return [Removed(what="trust", name=name, problem=problem) for name, problem in done]


def _withdrawn(state: State, user: str) -> list[tuple[str, str]]:
    from mitmsec.service import left_trust  # what handles certificates is not for the supervisor, which calls `reap`

    return left_trust.withdraw(state, user)


def _trusting_still(state: State) -> list[str]:
    from mitmsec.service import left_trust

    return left_trust.remaining(state)


def _tables(state: State, keep: Collection[str] = ()) -> list[Removed]:
    return [
        Removed(what="table", name=name, problem=problem)
        for name, problem in left_tables.reap(state.identity(), keep=keep)
    ]


def _diverters(state: State, ends: Callable[[str], bool] = lambda label: True) -> list[Removed]:
    return [
        Removed(what="diverter", name=name, problem=problem) for name, problem in left_diverters.reap(state, ends=ends)
    ]


def _ours(state: State) -> list[SessionCgroup]:
    return leftovers(state.identity())


def _session(cgroup: SessionCgroup) -> str:
    return cgroup.path.name.rpartition("-")[2]


def _remove(state: State, cgroup: SessionCgroup) -> list[Removed]:
    """The hook and the cgroup. Who lived in it is noted, for the folder's sake."""
    session = _session(cgroup)
    removed = []
    if (pins := state.bpf / session).is_dir():
        removed.append(_attempt("hook", session, lambda: unpin(pins)))
    if (folder := state.session_folder(session)).is_dir() and cgroup.is_populated():
        survivors.note(folder, cgroup.pids())
    removed.append(_attempt("cgroup", cgroup.path.name, lambda: release(cgroup, None)))
    return removed


def _runs(state: State) -> list[Path]:
    return [folder for folder in _folders(state.run) if folder not in (state.jail, state.bpf)]


def _drop(folder: Path, *, purge: bool = False) -> Removed:
    """The folder of a run that has ended, unless somebody still reads in it."""
    if not purge and (living := survivors.living(folder)):
        return Removed(what="folder", name=folder.name, kept=f"its roots are those of {_processes(living)}, alive")
    return _attempt("folder", folder.name, lambda: shutil.rmtree(folder))


def _processes(pids: list[int]) -> str:
    more = f" and {len(pids) - PIDS_TOLD} more" if len(pids) > PIDS_TOLD else ""
    return f"{'process' if len(pids) == 1 else 'processes'} {', '.join(map(str, pids[:PIDS_TOLD]))}{more}"


def _folders(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())
    return []


def _attempt(what: str, name: str, action: object) -> Removed:
    try:
        action()  # type: ignore[operator]
    except OSError as error:
        return Removed(what=what, name=name, problem=str(error))
    return Removed(what=what, name=name)


def remaining(state: State) -> list[str]:
    """Names of what is still there after `clean`: the proof is a second look."""
    found = [str(cgroup.path) for cgroup in _ours(state)] + [str(pins) for pins in _folders(state.bpf)]
    found += [*left_tables.remaining(state.identity()), *left_diverters.remaining(state), *_trusting_still(state)]
    return found + ([str(state.bpf)] if bpffs.is_mounted(state.bpf) else [])
