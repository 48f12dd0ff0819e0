"""What libebpfdivert attaches to interfaces, and what a killed process leaves there."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys

import pytest
from redirect_sandbox import ip

from mitmsec_redirect import clsact
from mitmsec_redirect.clsact import PROGRAMS, TrafficControl
from mitmsec_redirect.divert_library import open_handle
from mitmsec_redirect.divert_records import Layer

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_netns")]

HOLDER = """
import sys, time
sys.path[:0] = eval(sys.argv[1])
from mitmsec_redirect.divert_library import open_handle
from mitmsec_redirect.divert_records import Layer
handle = open_handle("tcp.DstPort == 9", Layer.NETWORK, priority=5)
print("open", flush=True)
time.sleep(60)
"""


def tc(*words: str) -> None:
    subprocess.run(["tc", *words], check=True, capture_output=True)


def test_an_open_handle_has_two_programs_on_each_interface_and_they_are_held() -> None:
    with contextlib.closing(TrafficControl()) as control:
        assert control.clsact() == frozenset()
        with contextlib.closing(open_handle("tcp.DstPort == 9", Layer.NETWORK, priority=5)):
            interfaces = control.clsact()
            assert interfaces >= {socket.if_nametoindex(name) for name in ("lo", "va", "vb")}
            found = [one for interface in interfaces for one in control.classifiers(interface)]
            assert len(found) == 2 * len(interfaces)
            assert all(one.name.startswith(PROGRAMS) for one in found)
            assert {one.program for one in found} <= clsact.programs_held()
            assert clsact.sweep() == 0
            assert control.clsact() == interfaces
        assert clsact.sweep() == 0, "an empty one may be another program's"
        assert clsact.tidy(control) == len(interfaces)  # what a clean close of the library leaves
        assert control.clsact() == frozenset()
        assert clsact.sweep() == 0


@pytest.mark.usefixtures("only_sweeper")
def test_what_a_killed_process_has_left_is_removed_and_what_lives_is_not() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, repr(sys.path)], stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        killed.send_signal(signal.SIGKILL)
    with contextlib.closing(TrafficControl()) as control:
        interfaces = control.clsact()
        with contextlib.closing(open_handle("tcp.DstPort == 9", Layer.NETWORK, priority=7)):
            assert clsact.sweep() == 2 * len(interfaces)
            assert {len(control.classifiers(interface)) for interface in interfaces} == {2}


def test_an_interface_that_goes_while_it_is_swept_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ip("link add vx type veth peer name vy")
    with subprocess.Popen([sys.executable, "-c", HOLDER, repr(sys.path)], stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        killed.send_signal(signal.SIGKILL)

    def held() -> frozenset[int]:
        ip("link del vx")
        return frozenset()

    monkeypatch.setattr(clsact, "programs_held", held)
    clsact.sweep()
    with contextlib.closing(TrafficControl()) as control:
        assert control.clsact() == frozenset(), "the others are swept all the same"


def test_other_programs_classifiers_are_left_where_they_are() -> None:
    tc("qdisc", "add", "dev", "va", "clsact")
    tc("filter", "add", "dev", "va", "egress", "bpf", "bytecode", "1,6 0 0 0")
    assert clsact.sweep() == 0
    with contextlib.closing(TrafficControl()) as control:
        index = socket.if_nametoindex("va")
        assert control.clsact() == {index}
        (other,) = control.classifiers(index)
        assert (other.kind, other.name) == (b"bpf\0", b"")
        control.detach(other)
        assert control.classifiers(index) == []
        control.remove_clsact(index)
        assert control.clsact() == frozenset()


def test_an_interface_that_is_not_there_is_an_error() -> None:
    with contextlib.closing(TrafficControl()) as control, pytest.raises(OSError, match="traffic control: ENODEV"):
        control.remove_clsact(9999)


def test_each_namespace_has_its_own() -> None:
    ip("link add vx type veth peer name vy")
    with contextlib.closing(TrafficControl()) as control:
        tc("qdisc", "add", "dev", "vx", "clsact")
        assert control.clsact() == {socket.if_nametoindex("vx")}
