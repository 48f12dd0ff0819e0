"""Diverters that outlived their supervisor, and what killed ones have left on network interfaces.

    alive ── SIGUSR1 ──► ends in order, in its own time; is killed if it takes too long
    dead ──► its programs, which nobody holds any more, are removed in every namespace

A diverter is known by its command line, which names the cgroup of its run, and so the state. That some run had one at
all says a file in that run's folder: without it no interface is looked at.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Collection, Iterator
from pathlib import Path

from mitmsec.service import namespaces
from mitmsec.service.state import State
from mitmsec_redirect import netns, windivert
from mitmsec_redirect.cgroup import PREFIX

MODULE = b"mitmsec.service.diverter"
MARK = "diverter"
END_S = 4.0


def mark(folder: Path) -> None:
    """A diverter is about to work for the run of this folder."""
    (folder / MARK).touch(mode=0o644)


def alive(state: State, *, keep: Collection[str] = ()) -> Iterator[tuple[int, str]]:
    """Pid and cgroup's name of each diverter of this state, but for those of the cgroups `keep`."""
    prefix = f"{PREFIX}{state.identity()}-"
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):  # it has ended
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            name = os.path.basename(words[-2]).decode(errors="replace") if len(words) > 1 else ""
            is_ours = MODULE in words and os.stat(f"/proc/{pid}").st_uid == 0
            if is_ours and name.startswith(prefix) and name not in keep:
                yield pid, name


def reap(state: State, *, keep: Collection[str] = ()) -> list[tuple[str, str]]:
    """End those that live, remove what dead ones have left: names, and what went wrong. With the state's lock held."""
    done = [(f"{name}, process {pid}", _end(pid)) for pid, name in alive(state, keep=keep)]
    if done or any(entry.is_file() for entry in state.run.glob(f"*/{MARK}")):
        for place, fd in namespaces.found():
            try:
                count = netns.inside(fd, windivert.reap)
            except OSError as error:
                done.append((f"programs of dead diverters in {place}", str(error)))
                continue
            done += [(f"{count} programs and qdiscs of dead diverters", "")] if count else []
    return done


def remaining(state: State) -> list[str]:
    """Those that live."""
    return [f"diverter {pid}" for pid, _ in alive(state)]


def _end(pid: int) -> str:
    """What went wrong; empty: it has ended."""
    try:
        process = os.pidfd_open(pid)
    except OSError:  # meanwhile
        return ""
    try:
        for number in (signal.SIGUSR1, signal.SIGKILL):
            signal.pidfd_send_signal(process, number)
            if select.select([process], [], [], END_S)[0]:
                return ""
        return "it does not end"
    except OSError as error:
        return "" if isinstance(error, ProcessLookupError) else str(error)
    finally:
        os.close(process)
