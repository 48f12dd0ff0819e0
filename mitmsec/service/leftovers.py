"""What dead owners left behind, found by name and removed: cgroups, pinned hooks, run folders.

`reap` runs at each start and takes only what nobody needs any more: while a command of a dead supervisor lives and its
policy says `closed`, its hook stays and keeps denying. `clean` is an order: everything goes, the network opens.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from mitmsec.core.model import Value
from mitmsec.service.ground import release
from mitmsec.service.state import State
from mitmsec_redirect import bpffs
from mitmsec_redirect.cgroup import SessionCgroup, leftovers
from mitmsec_redirect.connect_hook import reap as unpin


class Removed(Value, frozen=True):
    """One thing that was removed, or could not be."""

    what: str  # cgroup | hook | folder | mount | log
    name: str
    problem: str = ""


def reap(state: State) -> list[Removed]:
    """Remove the remains of runs whose command has ended. Call with the state's lock held."""
    return [done for cgroup in _ours(state) if not cgroup.is_populated() for done in _remove(state, cgroup)]


def clean(state: State, *, purge: bool) -> list[Removed]:
    """Remove the remains of all runs; with `purge` the log and keys too. Call with the state's lock held."""
    removed = [done for cgroup in _ours(state) for done in _remove(state, cgroup)]
    removed += [_attempt("hook", pins.name, lambda pins=pins: unpin(pins)) for pins in _folders(state.bpf)]
    for folder in _folders(state.run):
        if folder not in (state.jail, state.bpf):
            removed.append(_attempt("folder", folder.name, lambda folder=folder: shutil.rmtree(folder)))
    if bpffs.is_mounted(state.bpf):
        removed.append(_attempt("mount", str(state.bpf), lambda: bpffs.unmount(state.bpf)))
    state.control.unlink(missing_ok=True)
    if purge:
        for folder in (state.log, state.ca):
            if folder.exists():
                removed.append(_attempt("log and keys", str(folder), lambda folder=folder: shutil.rmtree(folder)))
    return removed


def _ours(state: State) -> list[SessionCgroup]:
    return leftovers(state.identity())


def _remove(state: State, cgroup: SessionCgroup) -> list[Removed]:
    session = cgroup.path.name.rpartition("-")[2]
    removed = []
    if (pins := state.bpf / session).is_dir():
        removed.append(_attempt("hook", session, lambda: unpin(pins)))
    removed.append(_attempt("cgroup", cgroup.path.name, lambda: release(cgroup, None)))
    if (folder := state.session_folder(session)).is_dir():
        removed.append(_attempt("folder", session, lambda: shutil.rmtree(folder)))
    return removed


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
    return found + ([str(state.bpf)] if bpffs.is_mounted(state.bpf) else [])
