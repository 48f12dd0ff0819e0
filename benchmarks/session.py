"""A whole run: start everything, take the rounds in turn, end everything, give the rows."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import host, install, measure, origin, ours, peers
from benchmarks.cgroups import Cgroup, own_cgroup
from benchmarks.figures import Row, rotated, summarise
from benchmarks.host import Failed
from benchmarks.measure import Figures, Plan
from benchmarks.outputs import Unreadable
from benchmarks.shell import Ended, TooLate
from benchmarks.variants import Running, Variant

NAMES = (
    "direct",
    "mitmsec decrypt",
    "mitmsec bypass",
    "mitmdump transparent",
    "mitmdump local",
    "squid",
    "sslsplit",
)
Maker = Callable[[], Variant]
_TROUBLE = (Unreadable, Ended, TooLate, Failed, OSError, LookupError)


@dataclass(slots=True)
class _Tally:
    """What one variant has given so far."""

    samples: list[Figures] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    invalid: str | None = None


class Session:
    """The started variants and their tallies."""

    def __init__(
        self, names: Sequence[str], say: install.Say, preflight: Callable[[Running], str] = measure.preflight
    ) -> None:
        """One row a name, in that order; `preflight` sees that a variant does what it claims, and says how it saw."""
        self.say, self._preflight = say, preflight
        self._tallies = {name: _Tally() for name in names}
        self._running: list[Running] = []

    @property
    def wanted(self) -> list[str]:
        """The names of its variants."""
        return list(self._tallies)

    def start(self, name: str, folder: Path, cgroup: Cgroup, make: Maker) -> Running | None:
        """Start one variant and see that it does what it claims; None, and an invalid row, where it does not."""
        self.say(f"starting {name}")
        try:
            running = Running(make(), cgroup, folder)
        except _TROUBLE as wrong:
            self._tallies[name].invalid = f"did not start: {wrong}"
            return None
        try:
            self.say(f"  {self._preflight(running)}")
        except _TROUBLE as wrong:
            self._tallies[name].invalid = f"preflight: {wrong}"
            return running
        self._running.append(running)
        return running

    def discard(self, name: str, reason: str) -> None:
        """Note a variant that cannot run here."""
        self._tallies[name].invalid = reason

    def measure(self, steps: Mapping[str, Callable[[Running], Figures]], rounds: int) -> None:
        """All rounds; within one, each step goes through all variants before the next step."""
        for number in range(rounds):
            for step, take in steps.items():
                self.say(f"round {number + 1}/{rounds}: {step}")
                for turn in range(measure.TURNS.get(step, 1)):
                    for running in rotated(self._running, number + turn):
                        self.note(running, step, partial(take, running))

    def weigh(self, plan: Plan) -> None:
        """The memory of each proxy, at the end and while it relays 1 GB."""
        for running in self._running:
            self.note(running, "memory", partial(measure.resident, running))
            if plan.huge and running.variant.name != "mitmdump local":
                self.say(f"1 GB through {running.variant.name}")
                self.note(running, "1 GB", partial(measure.growth, running))

    def rows(self) -> list[Row]:
        """One row a wanted variant."""
        return [
            Row(name, summarise(tally.samples), tuple(tally.notes), tally.invalid)
            for name, tally in self._tallies.items()
        ]

    def is_valid(self, name: str) -> bool:
        """Whether the variant has been started and does what it claims."""
        return self._tallies[name].invalid is None

    def note(self, running: Running, step: str, take: Callable[[], Figures]) -> None:
        """Take one sample; what goes wrong becomes a remark."""
        tally = self._tallies[running.variant.name]
        try:
            tally.samples.append(take())
        except _TROUBLE as wrong:
            tally.notes[f"{step}: {wrong}"] = None


def take(wanted: Sequence[str], plan: Plan, workers: int | None, say: install.Say) -> tuple[list[Row], host.Facts]:
    """Install, start, measure, end; raises `Failed` where nothing can be measured at all."""
    missing = install.programs(say)
    mitmdump = _mitmdump(wanted, missing, say)
    facts = host.facts(install.versions(missing))
    session = Session([name for name in NAMES if name in wanted], say)
    with ExitStack() as stack:
        try:
            _start(session, stack, missing, partial(_maker, mitmdump=mitmdump, workers=workers))
            session.measure({name: partial(_planned, step, plan) for name, step in measure.STEPS.items()}, plan.rounds)
            session.weigh(plan)
        finally:  # whatever ends the run, clean-up is not interrupted
            for ending in (signal.SIGINT, signal.SIGTERM):
                signal.signal(ending, signal.SIG_IGN)
    return session.rows(), facts


def _planned(step: measure.Step, plan: Plan, running: Running) -> Figures:
    return step(running, plan)


def _start(session: Session, stack: ExitStack, missing: dict[str, str], maker: Callable[..., Maker]) -> None:
    """The namespaces, the origin and every variant that can run; the stack ends them."""
    folder = stack.enter_context(own_folder())
    cgroup = stack.enter_context(own_cgroup())
    host.enter_private_mounts(folder / "hosts")
    origin_fd = host.enter_client_namespace()
    stack.callback(os.close, origin_fd)
    served = stack.enter_context(origin.serving(made(folder / "origin"), origin_fd))
    peers.redirect_clients()
    for name in session.wanted:
        if reason := missing.get(name.split()[0]):
            session.discard(name, f"not installed: {reason}")
            continue
        place = made(folder / name.replace(" ", "-"))
        make = maker(name, place, served.ca_file, cgroup)
        if running := session.start(name, place, cgroup.child(place.name), make):
            stack.callback(running.close)


def _maker(name: str, folder: Path, ca: Path, cgroup: Cgroup, *, mitmdump: Path, workers: int | None) -> Maker:
    makers: dict[str, Maker] = {
        "direct": lambda: Variant("direct", origin.ORIGIN_ISSUER, environment={"CURL_CA_BUNDLE": str(ca)}),
        "mitmsec decrypt": lambda: ours.decrypt(folder, ca, workers),
        "mitmsec bypass": lambda: ours.bypass(folder, ca, origin.ORIGIN_ISSUER, workers),
        "mitmdump transparent": lambda: peers.mitmdump_transparent(mitmdump, folder, ca),
        "mitmdump local": lambda: peers.mitmdump_local(mitmdump, folder, ca, cgroup),
        "squid": lambda: peers.squid(folder, ca),
        "sslsplit": lambda: peers.sslsplit(folder),
    }
    return makers[name]


def _mitmdump(wanted: Sequence[str], missing: dict[str, str], say: install.Say) -> Path:
    try:
        return install.mitmdump(say) if any(name.startswith("mitmdump") for name in wanted) else Path()
    except Failed as wrong:
        missing["mitmdump"] = str(wrong)
        return Path()


def made(folder: Path) -> Path:
    """The folder, new, for everybody to read."""
    folder.mkdir()
    folder.chmod(0o755)
    return folder


@contextmanager
def own_folder() -> Iterator[Path]:
    """This run's temporary folder, removed at the end; those that killed runs left are removed first."""
    for stale in Path(tempfile.gettempdir()).glob("mitmsec-bench-*-*"):
        if not Path("/proc", stale.name.split("-")[2]).exists():
            shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"mitmsec-bench-{os.getpid()}-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
