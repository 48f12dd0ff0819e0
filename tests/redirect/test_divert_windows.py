"""What `windivert` finds on Windows; and the whole backend under Wine, with real processes, sockets and signatures.

The driver alone is missing there. In its place the test gives events and first packets, and takes what is sent: of
connections that programs have really made.
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from typing import cast

import pytest
from windows_python import WHY_NOT, is_there, windows_python

from mitmsec.core.model import Confidence, Transport
from mitmsec_redirect.divert_seams import SocketTold
from mitmsec_redirect.divert_system import DivertSystem
from mitmsec_redirect.divert_windows import WindowsDivert
from mitmsec_redirect.filters import WINDIVERT
from mitmsec_redirect.packet import TCP, Ends
from mitmsec_redirect.windows_system import WindowsSystem
from mitmsec_redirect.windows_table import WindowsTable


class Asked:
    """Windows, as far as it is asked here."""

    def ticks_per_s(self) -> int:
        return 10_000_000

    def pids(self) -> list[int]:
        return [7]

    def open(self, pid: int) -> None:
        """Nobody who may be asked about."""

    def signer(self, path: str, descriptor: int) -> None:
        """Nor has anybody signed."""


def made() -> WindowsDivert:
    return WindowsDivert(cast("WindowsSystem", Asked()))


def test_nothing_is_prepared_and_nothing_is_left() -> None:
    system: DivertSystem = made()
    with ExitStack() as held:
        system.prepare(held)
    assert (system.limits, system.first_packets, system.has_cookies) == (WINDIVERT, "", False)
    assert (system.ticks_per_s, system.reap()) == (10_000_000, 0)


def test_of_a_socket_nothing_is_told_and_of_nobody_the_pid() -> None:
    owners = made().owners()
    ends = Ends(protocol=TCP, transport=20, source=b"1234", destination=b"5678", source_port=1, destination_port=2)
    assert owners.socket_of(ends, 0) == SocketTold(Transport.TCP)
    told = owners.owner(7, 0, None, Confidence.TABLE).process
    assert (told.pid, told.exe, told.confidence) == (7, None, Confidence.INFERRED)
    owners.close()


def test_its_table_is_windows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: name, raising=False)
    monkeypatch.setattr("mitmsec_redirect.windows_table._declared", lambda loaded: loaded)
    assert isinstance(made().sockets(), WindowsTable)


# --- under Wine -------------------------------------------------------------------------------------------------------
UNDER_WINE = r"""
import socket, struct, subprocess, time
from msgspec import to_builtins
sys.path.insert(0, os.path.join(sys.argv[2], "tests", "redirect"))
from divert_packets import SYN, Wire, address, tcp, until
from mitmsec.core.model import Action, Endpoint, OnFailure, Quic
from mitmsec.core.policy import Policy
from mitmsec.core.rules import Application, Rule
from mitmsec_redirect import divert_asking, divert_engine, windivert
from mitmsec_redirect.divert_records import RecordFlag
from mitmsec_redirect.divert_seams import Callbacks
from mitmsec_redirect.divert_signals import Choice
from mitmsec_redirect.filters import Own, Ports
from mitmsec_redirect.windows_system import WindowsSystem

# Wine takes seconds for its table where a machine has thousands of sockets, and for a signature on a busy one.
divert_engine.HOLD_LIMIT_S, divert_asking.FACTS_S = 60.0, 50.0
wires = {}
windivert.open_handle = lambda text, layer, *, priority=0, **flags: wires.setdefault(priority, Wire())
program = Application(name="python", signer=("Python Software Foundation",))
policy = Policy(applications=(program,), rules=(Rule(name="r", application=("python",), action=Action.DECRYPT),))
decided, expected, faults = [], [], []
def decide(process, remote, told):
    decided.append(process)
    if not policy.can_judge(process):
        raise ValueError("cannot be judged")
    return Choice.DIVERT
callbacks = Callbacks(
    decide=decide,
    expect=lambda flow, told: expected.append(flow),
    report=faults.append,
    suffices=policy.can_judge,
)
own = Own(gate_port=8085, upstream=Ports(first=61000, last=62999))
backend = windivert.Windivert.open(own, callbacks, on_failure=OnFailure.OPEN, quic=Quic.BYPASS)
EVENTS, SYNS, LOCALHOST = wires[0], wires[2000], bytes([127, 0, 0, 1])

def ticks():
    return time.perf_counter_ns() * WindowsSystem().ticks_per_s() // 10**9
def connects(pid, local, at):
    words = (0x7F000001, 0xFFFF, 0, 0)
    return struct.pack("<qxB22xI4I4IHHB7x", at, 4, pid, *words, *words, local, port, 6)
def holds(local):
    packet = bytearray(tcp(local, port, SYN))
    packet[12:20] = LOCALHOST * 2
    SYNS.give([(bytes(packet), address(RecordFlag.OUTBOUND | RecordFlag.LOOPBACK))])
def went(count):
    until(lambda: len(SYNS.sent) == count, 60)
    return struct.unpack_from("!H", SYNS.sent[-1][0], 22)[0]  # its destination port

CHILD = '''
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
    s.sendall(b"x")
    print(s.getsockname()[1], flush=True)
    input()
'''
server = socket.create_server(("127.0.0.1", 0))
port = server.getsockname()[1]
def starts():
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return child, int(child.stdout.readline())

before = ticks() - WindowsSystem().ticks_per_s()
first, local = starts()
EVENTS.give([(b"", connects(first.pid, local, ticks()))])
holds(local)
told([first.pid, local, went(1), [to_builtins(one) for one in decided], to_builtins(expected[0].origin.remote), port])
second, local = starts()
holds(local)
told([second.pid, went(2), [to_builtins(one) for one in decided[1:]]])
for pid, at in ((second.pid, before), (4_000_000, ticks())):
    EVENTS.give([(b"", connects(pid, local + 1, at))])
    holds(local + 1)
    told([pid, went(len(SYNS.sent) + 1), to_builtins(decided[-1]), faults[-1].what])
    local += 1
third, local = starts()
at = ticks()
time.sleep(1)  # in which it is met
third.communicate("\n")
EVENTS.give([(b"", connects(third.pid, local, at))])
holds(local)
told([third.pid, went(len(SYNS.sent) + 1), to_builtins(decided[-1]), faults[-1].what])
told(len(faults))
for child in (first, second):
    child.communicate("\n")
backend.close()
told([wire.is_closed for wire in wires.values()])
"""


@pytest.mark.skipif(not is_there(), reason=WHY_NOT)
def test_under_wine_a_connection_is_diverted_by_who_signed_its_program_and_by_nothing_less() -> None:
    by_event, by_table, reused, nobody, ended, faults, closed = windows_python("divert.py", UNDER_WINE)
    pid, _, gate_port, (process,), origin, port = by_event
    assert (process["pid"], process["name"], process["confidence"]) == (pid, "python.exe", "kernel")
    assert process["signer"].startswith("CN=Python Software Foundation, ")
    assert (gate_port, origin) == (8085, ["127.0.0.1", port])

    pid, gate_port, (process,) = by_table
    assert (process["pid"], process["name"], process["confidence"]) == (pid, "python.exe", "inferred"), (
        "Wine does not say when a socket was made"
    )
    assert process["signer"].startswith("CN=Python Software Foundation, ")
    assert gate_port == 8085

    for pid, went_to, process, what in (reused, nobody):
        assert (process["pid"], process["exe"], process["confidence"]) == (pid, None, "inferred")
        assert (went_to, what) == (port, "not_decided")

    pid, _, process, what = ended
    assert (process["pid"], process["name"], process["confidence"]) == (pid, "python.exe", "kernel"), "it was met"
    assert (process["unread"], what) == (["signer"], "not_decided"), "its file was not opened while it lived"
    assert faults == 3
    assert closed == [True] * len(closed)
