"""What a decision costs under many rules and long lists, and what it takes to load them.

    python -m benchmarks.long_lists [--rules 1000] [--names 1000000] [--lists 2] [--decisions 50000]

Measured is what happens in the gate for each flow: both questions to the policy, about processes, addresses and names
that have just been read and that it has not seen before, in CPU time of the thread without what reading the clock
takes. A busy machine interrupts any work, which is charged to whom it interrupts: of PASSES passes over the same flows,
each past a policy that has not seen them, a flow's figure is the median; `one pass` is what the first alone would say.
`both` is the two questions together.

`load`: from the files to a policy that `check` calls valid; `arrange`: from what the supervisor hands a gate to one
that has answered. Each in a process of its own, in seconds of the clock and of its CPU. The memory is what the process
has more than before.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import string
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec

from mitmsec.config import load_policy
from mitmsec.core.model import Endpoint, Process
from mitmsec.core.policy import Policy
from mitmsec.core.policy_packing import packed, unpacked
from mitmsec.core.sniff import Protocol, Shown

SUFFIXES = ("com", "net", "org", "de", "co.uk", "com.br", "io", "example")
ACTIONS = ("bypass", "block", "decrypt")
AT_S, WARM_UP, PASSES = 1_767_610_800.0, 2000, 3

type Flow = tuple[Process, Endpoint, Shown]


class Load(NamedTuple):
    """One way to a policy."""

    took_s: float
    cpu_s: float
    memory_mb: float


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for option, default in (("rules", 1000), ("names", 1_000_000), ("lists", 2), ("decisions", 50_000)):
        parser.add_argument(f"--{option}", type=int, default=default)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder), rules=told.rules, names=told.names, lists=told.lists)
        sizes = f"{told.lists} lists of {told.names:,} names" if told.lists else "no lists"
        print(f"{told.rules:,} rules, {sizes}")
        policy = load_policy(file)
        loaded, arranged = apart(lambda: load_policy(file)), apart(arranging(packed(policy)))
        for word, load in (("load", loaded), ("arrange", arranged)):
            print(f"{word:8} {load.took_s:6.2f} s   CPU {load.cpu_s:6.2f} s   memory {load.memory_mb:6.0f} MB")
        flows = made_flows(policy, told.decisions + WARM_UP)
        passes = [decide(policy, flows) for _ in range(PASSES)]
        of_each = [
            [statistics.median(times) for times in zip(*each, strict=True)] for each in zip(*passes, strict=True)
        ]
        rows = (
            *zip(("at_connect", "at_hello"), of_each, strict=True),
            ("both", [sum(both) for both in zip(*of_each, strict=True)]),
            *zip(("  one pass", "  one pass"), passes[0], strict=True),
        )
        for word, times_us in rows:
            cuts = statistics.quantiles(times_us, n=1000)
            print(f"{word:12} p50 {cuts[499]:6.2f} us   p99 {cuts[989]:6.2f} us   p99.9 {cuts[998]:6.2f} us")


def write(folder: Path, *, rules: int, names: int, lists: int) -> Path:
    """A policy file with so many rules, and the lists that it names: each rule has one, and two patterns."""
    chance = random.Random(7)
    for number in range(lists):
        listed = "\n".join(some_name(chance) for _ in range(names))
        (folder / f"list-{number}.txt").write_text(f"# list {number}\n{listed}\n")
    blocks = ["version = 1"]
    for number in range(rules):
        entries = [f"r{number}.{some_name(chance)}", f"*.{some_name(chance)}"]
        entries += [f"@list-{number % lists}.txt"] if lists else []
        blocks.append(
            f'[[rule]]\nname = "rule {number}"\naction = "{chance.choice(ACTIONS)}"\n'
            f'application = ["/opt/app-{number}/*"]\nport = [443, "{8000 + number}-{9000 + number}"]\n'
            f"host = [{', '.join(f'"{entry}"' for entry in entries)}]"
        )
    file = folder / "policy.toml"
    file.write_text("\n".join(blocks) + "\n")
    return file


def some_name(chance: random.Random) -> str:
    label = "".join(chance.choices(string.ascii_lowercase, k=chance.randint(5, 14)))
    return f"{label}.{chance.choice(SUFFIXES)}"


def arranging(content: bytes) -> Callable[[], Policy]:
    """What a gate does with what it is handed."""

    def arrange() -> Policy:
        policy = unpacked(content)
        for _ in policy.listed.filling():
            pass
        policy.at_hello(Process(pid=1), Endpoint(address="192.0.2.1", port=1), AT_S, shown=Shown.of("a.example"))
        return policy

    return arrange


def apart(work: Callable[[], Policy]) -> Load:
    """In a process of its own."""
    reading, writing = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        before_mb, begun_s, begun_cpu_s = memory_mb(), time.perf_counter(), time.process_time()
        made = work()  # held until it is measured
        took_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
        writing.send(Load(took_s, cpu_s, memory_mb() - before_mb))
        del made

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    load: Load = reading.recv()
    process.join()
    return load


def memory_mb() -> float:
    """What is resident of this process, and its own."""
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    private = sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))
    return private / 1024


def made_flows(policy: Policy, count: int) -> list[Flow]:
    """Half of the names are in a list."""
    chance, rules = random.Random(8), len(policy.rules)
    listed = [name for one in policy.lists for name in chance.sample(list(one.names()), 1000)]
    flows = []
    for number in range(count):
        process = Process(pid=number, exe=f"/opt/app-{chance.randrange(max(rules, 1) * 2) % 300}/bin/x")
        remote = Endpoint(address=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", port=443)
        name = chance.choice(listed) if listed and number % 2 else some_name(chance)
        shown = Shown(protocol=Protocol.TLS, name=f"www{number}.{name}", alpn=("h2", "http/1.1"), ja4="t13d_x_y")
        flows.append((process, remote, shown))
    return flows


def decide(policy: Policy, flows: list[Flow]) -> tuple[list[float], list[float]]:
    """The microseconds that each question took, by a policy that remembers nothing, without those of the warm-up."""
    policy, clock_ns, listed = msgspec.structs.replace(policy), clock_cost_ns(), policy.listed
    policy.__dict__["listed"] = listed  # what it took in stays: only what is remembered of flows is gone
    connect_us, hello_us = [], []
    for flow in flows:
        process, remote, shown = just_read(flow)
        begun_ns = time.thread_time_ns()
        policy.at_connect(process, remote, AT_S)
        middle_ns = time.thread_time_ns()
        policy.at_hello(process, remote, AT_S, shown=shown)
        end_ns = time.thread_time_ns()
        connect_us.append((middle_ns - begun_ns - clock_ns) / 1000)
        hello_us.append((end_ns - middle_ns - clock_ns) / 1000)
    return connect_us[WARM_UP:], hello_us[WARM_UP:]


def just_read(flow: Flow) -> Flow:
    """The same, made now: what a gate asks about was not made long ago, and far from all else in memory."""
    process, remote, shown = flow
    exe, name = again(process.exe or ""), again(shown.name or "")
    return (
        msgspec.structs.replace(process, exe=exe),
        msgspec.structs.replace(remote, address=again(remote.address)),
        msgspec.structs.replace(shown, name=name),
    )


def again(text: str) -> str:
    return text.encode().decode()


def clock_cost_ns() -> int:
    """What lies between two readings of the clock."""
    readings = [time.thread_time_ns() for _ in range(1001)]
    return int(statistics.median(later - earlier for earlier, later in pairwise(readings)))


if __name__ == "__main__":
    main()
