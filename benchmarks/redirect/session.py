"""A whole run of the redirect benchmark: everything started, rounds in turn, the rows."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import host, install, measure, origin, peers
from benchmarks.cgroups import own_cgroup
from benchmarks.figures import Row
from benchmarks.host import Failed
from benchmarks.measure import Figures
from benchmarks.origin import HUGE, SMALL
from benchmarks.redirect import backends, callers, counting, packets, placing
from benchmarks.redirect.backends import Absent, Surroundings
from benchmarks.redirect.counting import Counting
from benchmarks.redirect.figures import (
    BESIDE,
    DIRECT,
    FLOOR,
    LOCAL,
    TRANSPARENT,
    WINDIVERT,
    looped,
    parse_connect,
    parse_loop,
)
from benchmarks.session import Session, made, own_folder
from benchmarks.variants import Running

BUSY_RATE = "20M"  # bytes a second of the busy client, the same whoever leads it
SLOW_SHARE = 50  # of the connections in a row a mitmdump makes one in so many
BESIDE_SHARE = 10  # and so does, of those that are led, the bystander
_CALLER = str(Path(callers.__file__))
_CALLS_DEADLINE_S, _LOOP_DEADLINE_S = 60.0, 400.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often: `bulk_s` at most a download, `calls` for the time of connect(), `in_a_row` for losses."""

    rounds: int
    window_s: int
    bulk_s: float
    calls: int
    in_a_row: int


class Bench:
    """The started rows with their bystanders, and the steps that are taken of them."""

    def __init__(self, session: Session, plan: Plan, counted: Counting, apart: Mapping[str, int]) -> None:
        """`apart`: the namespaces of rows that have one of their own."""
        self._session, self._plan, self._counted, self._apart = session, plan, counted, apart
        self._leading: dict[str, Running] = {}
        self._beside: dict[str, Running] = {}

    def start(self, name: str, around: Surroundings, stack: ExitStack) -> None:
        """A row, and its bystanders where it has some; what cannot be made is noted. The stack ends them."""
        with host.within(self._apart.get(name)):
            self._start(name, around, stack)

    def _start(self, name: str, around: Surroundings, stack: ExitStack) -> None:
        try:
            variant = backends.made(name, around)
        except (Absent, Failed, OSError) as why:
            return self._session.discard(name, str(why))
        leading = self._session.start(name, around.folder, around.cgroup.child(around.folder.name), lambda: variant)
        if leading is None:
            return
        stack.callback(leading.close)
        self._leading[name] = leading
        if name not in backends.LEADING or not self._session.is_valid(name):
            return
        aside = backends.bystander(name, variant)
        folder = made(around.folder / "beside")
        cgroup = around.cgroup.child(f"{around.folder.name}-beside")
        if beside := self._session.start(aside.name, folder, cgroup, lambda: aside):
            stack.callback(beside.close)
            self._beside[name] = beside

    def measure(self) -> None:
        """All rounds, then the connections in a row."""
        steps: dict[str, Callable[[Running], Figures]] = {
            "downloads": self._bulk,
            **{f"new connections, gates on core {core}": partial(self._connections, core) for core in placing.cores()},
            "bulk, again": self._bulk,
            "connect()": self._connect,
            "bulk, once more": self._bulk,
            "packets": self._packets,
        }
        self._session.measure({name: partial(self._busily, step) for name, step in steps.items()}, self._plan.rounds)
        for name in self._beside:
            if name != DIRECT:
                self._session.say(f"connections in a row: {name}")
                self._session.note(self._leading[name], "in a row", partial(self._in_a_row, name))

    def _busily(self, step: Callable[[Running], Figures], running: Running) -> Figures:
        """The step; a bystander's is taken while the backend serves a busy client."""
        name = running.variant.name.removeprefix(BESIDE)
        if name == running.variant.name:
            return step(running)
        with _busy(self._leading[name]):
            return step(running)

    def _bulk(self, running: Running) -> Figures:
        return measure.bulk_within(url(running, HUGE), running, self._plan.bulk_s)

    def _packets(self, running: Running) -> Figures:
        """Of who diverts packet by packet, which is who has a namespace of its own."""
        apart_fd = self._apart.get(running.variant.name)
        if apart_fd is None:
            return {}
        with packets.divided(apart_fd):
            return packets.counted(running, partial(self._bulk, running))

    def _connections(self, core: int, running: Running) -> Figures:
        with placing.held(running.pids(), core):
            return measure.connections_to(url(running, SMALL), running, self._plan.window_s)

    def _connect(self, running: Running) -> Figures:
        argv = _caller(running, "connect", *_called(running), self._plan.calls)
        return parse_connect(running.shell.run(argv, timeout_s=_CALLS_DEADLINE_S).stdout)

    def _in_a_row(self, name: str) -> Figures:
        """A caller that is led and, at the same time, one that is not; the origin counts both."""
        share = SLOW_SHARE if name in (TRANSPARENT, LOCAL) else 1
        count = max(self._plan.in_a_row // share, 1)
        with ThreadPoolExecutor() as pool:
            led = pool.submit(_loop, self._leading[name], count, "led")
            beside = pool.submit(_loop, self._beside[name], max(count // BESIDE_SHARE, 1), "beside")
            sent, beside_sent = led.result(), beside.result()
        return looped(sent, self._counted.arrivals("led"), beside_sent, self._counted.arrivals("beside"))


def take(names: Sequence[str], plan: Plan, say: install.Say) -> tuple[list[Row], host.Facts]:
    """Install, start, measure, end; raises `Failed` where nothing can be measured at all."""
    missing = install.programs(say)
    mitmdump = _mitmdump(names, say)
    facts = host.facts(install.versions(missing))
    rows = [*names, *(BESIDE + name for name in names if name in backends.LEADING)]
    session = Session(rows, say, _preflight)
    with ExitStack() as stack:
        try:
            _start(session, plan, names, mitmdump, stack).measure()
        finally:  # whatever ends the run, clean-up is not interrupted
            for ending in (signal.SIGINT, signal.SIGTERM):
                signal.signal(ending, signal.SIG_IGN)
    return session.rows(), facts


def url(running: Running, what: str) -> str:
    """Where the row's clients find one of the origin's objects."""
    address, port = _called(running)
    return f"http://{address}:{port}/{what}"


def _start(session: Session, plan: Plan, names: Sequence[str], mitmdump: Path, stack: ExitStack) -> Bench:
    folder = stack.enter_context(own_folder())
    cgroup = stack.enter_context(own_cgroup())
    host.enter_private_mounts(folder / "hosts")
    origin_fd = host.enter_client_namespace()
    stack.callback(os.close, origin_fd)
    served = stack.enter_context(origin.serving(made(folder / "origin"), origin_fd))
    counted = stack.enter_context(counting.serving(origin_fd))
    peers.redirect_clients("{ 80, 7008 }")
    apart = {WINDIVERT: host.apart(origin_fd), FLOOR: host.mirror()}  # what takes everybody's packets there
    for namespace_fd in apart.values():
        stack.callback(os.close, namespace_fd)
    if FLOOR in names:
        stack.enter_context(origin.serving(made(folder / "mirrored"), apart[FLOOR], is_near=False))
    bench = Bench(session, plan, counted, apart)
    for name in names:
        around = Surroundings(made(folder / name.replace(" ", "-")), cgroup, served.ca_file, mitmdump)
        bench.start(name, around, stack)
    return bench


def _preflight(running: Running) -> str:
    measure.answered(running, url(running, SMALL))
    return "answers"


def _called(running: Running) -> tuple[str, int]:
    return backends.address(running.variant.name.removeprefix(BESIDE))


def _caller(running: Running, *words: object) -> list[str]:
    python = running.variant.programs.get("python3", sys.executable)
    return [python, "-I", "-S", _CALLER, *map(str, words)]


def _loop(running: Running, count: int, who: str) -> int:
    argv = _caller(running, "loop", host.ORIGIN_ADDRESS, counting.PORT, count, who)
    return parse_loop(running.shell.run(argv, timeout_s=_LOOP_DEADLINE_S).stdout)


@contextmanager
def _busy(leading: Running) -> Iterator[None]:
    """A client that is led and downloads at a fixed rate, from before the context until after it."""
    argv = (leading.program("curl"), "-sS", "--limit-rate", BUSY_RATE, "-o", "/dev/null", url(leading, HUGE))
    started = leading.shell.run_script(f"{shlex.join(argv)} >/dev/null 2>&1 & echo $!", timeout_s=10)
    try:
        yield
    finally:
        leading.shell.run(("kill", started.stdout.strip()), timeout_s=10)


def _mitmdump(names: Sequence[str], say: install.Say) -> Path:
    try:
        return install.mitmdump(say) if {TRANSPARENT, LOCAL} & set(names) else Path()
    except Failed as wrong:
        say(f"mitmdump: {wrong}")
        return Path()
