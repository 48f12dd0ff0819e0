"""What runs inside `mitmsec run`: one process that forks a caller for each unit, a few at a time, and the servers.

    actors ─┬─ fork ─► caller of a unit (`_ACTS`) ─► fork, exec, threads, SCM_RIGHTS … as its pattern says
            ├─ fork ─► a process for each inbound pattern (`servers`)
            └─ exec ─► the partner (`partner`), a copy of the interpreter

Forking a small Python takes under a millisecond; starting one takes twenty. So nearly all callers are forks, and other
programs are executed only where being another program is the point. Callers sign before they call.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from socket import SOCK_DGRAM

from benchmarks.attribution import calls, job, partner, servers
from benchmarks.attribution.job import ORIGIN_PORT, Job
from benchmarks.attribution.plan import Flow, Pattern, Unit
from benchmarks.attribution.whoami import Book

_BASH_CALLS = 'exec 9<>"/dev/tcp/$0/$1" && printf "=%d\\n" "$2" >&9'
_BASH_WAITS = f"{_BASH_CALLS} && read -r answer <&9"
_BASH_THEN_CURL = f'{_BASH_CALLS}; shift 2; exec "$@"'
_BASH_TAKES_OVER = 'printf "=%d\\n" "$1" >&"$0" && read -r answer <&"$0"'
_SYS_CLONE3, _PR_SET_CHILD_SUBREAPER = 435, 36
_LIBC = ctypes.PyDLL(None, use_errno=True)  # PyDLL: the interpreter's lock stays with us, in the child too


class Actors:
    """The acts, one for each outbound pattern. Each is called in a process of its own, which ends when it returns."""

    def __init__(self, work: Job) -> None:
        self.work, self.book = work, Book(work.labels)

    def brief(self, unit: Unit) -> None:
        (flow,) = unit
        self._sign(flow)
        calls.connected(flow).sendall(calls.first_words(flow.number))

    def steady(self, unit: Unit) -> None:
        for flow in unit:
            self._sign(flow)
            calls.converse(calls.connected(flow), flow.number)

    def forked(self, unit: Unit) -> None:
        if os.fork() == 0:
            self.steady(unit)

    def threads(self, unit: Unit) -> None:
        threads = [threading.Thread(target=self.steady, args=((flow,),)) for flow in unit]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def bash(self, unit: Unit) -> None:
        (flow,) = unit
        self._sign(flow, self.work.bash)
        self._bash(_BASH_WAITS, flow.far_end, str(ORIGIN_PORT), str(flow.number))

    def curl(self, unit: Unit) -> None:
        (flow,) = unit
        self._sign(flow, self.work.curl)
        os.execv(self.work.curl, self._curl(flow))

    def exec_chain(self, unit: Unit) -> None:
        first, second, third = unit
        self._sign(first)
        self._sign(second, self.work.bash)
        self._sign(third, self.work.curl)
        sock = calls.connected(first)
        sock.sendall(calls.first_words(first.number))
        os.set_inheritable(sock.fileno(), True)
        self._bash(_BASH_THEN_CURL, second.far_end, str(ORIGIN_PORT), str(second.number), *self._curl(third))

    def inherited(self, unit: Unit) -> None:
        (flow,) = unit
        self._sign(flow)
        sock = calls.connected(flow)
        os.set_inheritable(sock.fileno(), True)
        self._bash(_BASH_TAKES_OVER, str(sock.fileno()), str(flow.number))

    def passed(self, unit: Unit) -> None:
        (flow,) = unit
        self._sign(flow)
        partner.hand_over(calls.connected(flow), flow, self.work)

    def lent(self, unit: Unit) -> None:
        (flow,) = unit
        partner.hand_over(calls.made(flow), flow, self.work)

    def reused(self, unit: Unit) -> None:
        """The second caller gets the first one's pid by asking for it; where another has it by then, there is none."""
        first, second = unit
        pid = os.fork()
        if pid == 0:
            self.brief((first,))
            os._exit(0)
        os.waitpid(pid, 0)
        with suppress(FileExistsError):
            if fork_as(pid) == 0:
                self._sign(second, self.work.bash)
                self._bash(_BASH_CALLS, second.far_end, str(ORIGIN_PORT), str(second.number))
            os.waitpid(pid, 0)

    def udp_connected(self, unit: Unit) -> None:
        (flow,) = unit
        self._sign(flow)
        calls.converse(calls.connected(flow, SOCK_DGRAM), flow.number)

    def udp_sendto(self, unit: Unit) -> None:
        (flow,) = unit
        self._sign(flow)
        with calls.made(flow, SOCK_DGRAM) as sock:
            sock.sendto(calls.first_words(flow.number), (flow.far_end, ORIGIN_PORT))
            sock.recv(64)

    def _sign(self, flow: Flow, exe: str | None = None) -> None:
        self.book.sign(flow.number, flow.pattern, exe)

    def _bash(self, script: str, *arguments: str) -> None:
        os.execv(self.work.bash, [self.work.bash, "--norc", "-c", script, *arguments])

    def _curl(self, flow: Flow) -> list[str]:
        host = flow.far_end if flow.family == "v4" else f"[{flow.far_end}]"
        quiet = ["-sS", "--noproxy", "*", "-m", str(calls.DEADLINE_S), "-o", "/dev/null"]
        return [self.work.curl, *quiet, f"http://{host}:{ORIGIN_PORT}/{flow.number}"]


def fork_as(pid: int) -> int:
    """`fork()` whose child has this pid (clone3, `set_tid`). Raises FileExistsError where somebody has it, OSError."""
    wanted = (ctypes.c_int * 1)(pid)
    fields = struct.pack("=11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1, 0)
    given: int = _LIBC.syscall(ctypes.c_long(_SYS_CLONE3), fields, ctypes.c_size_t(len(fields)))
    if given < 0:
        raise OSError(ctypes.get_errno(), "clone3 with set_tid")
    return given


def main(path: Path) -> int:
    """All outbound units, a few at a time, and every server, to their ends."""
    work = job.read(path)
    acts = Actors(work)
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # grandchildren too are waited for
    other = _start_partner(path, work.partner)
    serving = [_in_child(partial(servers.run, pattern, work, acts.book)) for pattern in _inbound(work)]
    _wait_for(work.door)
    running: set[int] = set()
    for unit in work.outbound():
        if len(running) >= work.in_flight:
            _reap(running)
        running.add(_in_child(partial(_act, acts, unit)))
    while running:
        _reap(running)
    other.wait()
    for _ in serving:
        with suppress(ChildProcessError):
            os.wait()
    return 0


def _act(acts: Actors, unit: Unit) -> None:
    act: Callable[[Unit], None] = getattr(acts, unit[0].pattern)
    act(unit)


def _inbound(work: Job) -> list[Pattern]:
    return sorted({unit[0].pattern for unit in work.inbound()})


def _in_child(act: Callable[[], None]) -> int:
    if pid := os.fork():
        return pid
    try:
        act()
    except OSError as wrong:
        os.write(2, f"{type(wrong).__name__}: {wrong}\n".encode())
        os._exit(1)
    os._exit(0)


def _reap(running: set[int]) -> None:
    """Wait until one of them has ended; grandchildren that end meanwhile are let go."""
    while (pid := os.wait()[0]) not in running:
        pass
    running.discard(pid)


def _start_partner(path: Path, program: str) -> subprocess.Popen[bytes]:
    places = {
        "PYTHONHOME": sys.base_prefix,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),
    }
    argv = [program, "-m", "benchmarks.attribution.partner", str(path)]
    return subprocess.Popen(argv, env={**os.environ, **places}, stdin=subprocess.DEVNULL)


def _wait_for(door: Path) -> None:
    until_s = time.monotonic() + calls.DEADLINE_S
    while not door.exists():
        if time.monotonic() > until_s:
            raise TimeoutError("the partner did not start")
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
