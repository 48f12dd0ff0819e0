"""Diverters that outlived their supervisor, and what killed ones have left on network interfaces.

    alive ── SIGUSR1 ──► ends in order, in its own time; is killed if it takes too long
    dead ──► its programs, which nobody holds any more, are removed in every namespace

A diverter is known by its command line, which names its state and its session, as the cgroup of a run does. That some
session had one at all says a file in its folder: without it no interface is looked at.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from mitmsec.service import namespaces
from mitmsec.service.state import State
from mitmsec_redirect import netns, windivert
from mitmsec_redirect.cgroup import PREFIX

WORDS = (b"mitmsec.service", b"diverter")
MARK = "diverter"
END_S = 4.0


def mark(folder: Path) -> None:
    """A diverter is about to work for the run of this folder."""
    (folder / MARK).touch(mode=0o644)


def label(state: State, session: str) -> str:
    """What a diverter's command line ends in."""
    return f"{PREFIX}{state.identity()}-{session}"


def is_diverter(words: Sequence[bytes]) -> bool:
    """Whether a command line is a diverter's."""
    return any(tuple(pair) == WORDS for pair in pairwise(words))


def alive(state: State) -> Iterator[tuple[int, str]]:
    """Pid and label of each diverter of this state."""
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):  # it has ended
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            name = words[-2].decode(errors="replace") if len(words) > 1 else ""
            if is_diverter(words) and name.startswith(label(state, "")) and os.stat(f"/proc/{pid}").st_uid == 0:
                yield pid, name


def reap(state: State, *, ends: Callable[[str], bool] = lambda label: True) -> list[tuple[str, str]]:
    """End those that live, of labels that are to end, and remove what dead ones have left: names, and what went wrong.

    With the state's lock held.
    """
    done = [(f"{name}, process {pid}", _end(pid)) for pid, name in alive(state) if ends(name)]
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
