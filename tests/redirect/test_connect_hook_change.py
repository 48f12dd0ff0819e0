"""Other terms for a hook that is at work: exchanged in place, with no connection that meets neither."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redirect_sandbox import CONNECT_LOCAL, Origins, Sandbox, beat, stall

from mitmsec.core.model import OnFailure, Quic
from mitmsec_redirect import bpffs
from mitmsec_redirect.bpf import Map, MapKind
from mitmsec_redirect.runs import RunCgroups
from mitmsec_redirect.steps import Selection

pytestmark = pytest.mark.root

QUIC = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); answer = s.sendto(b'x', ('10.77.0.1', 443))"


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "bpf"
    bpffs.mount(folder)
    yield folder / "session"
    assert bpffs.unmount(folder)


def test_quic_is_refused_or_not_as_the_newest_terms_say(sandbox: Sandbox) -> None:
    hook, agent = sandbox.hook(quic=Quic.BYPASS), sandbox.agent()
    assert agent(QUIC) == {"answer": 1}
    for refuses in (Quic.REFUSE, Quic.DECRYPT):  # there is no relay to which it could be led
        hook.change(on_failure=OnFailure.OPEN, quic=refuses)
        assert agent(QUIC) == {"error": "EPERM"}
    hook.change(on_failure=OnFailure.OPEN, quic=Quic.BYPASS)
    assert agent(QUIC) == {"answer": 1}


def test_the_way_that_failures_go_changes_with_its_pins(sandbox: Sandbox, pins: Path) -> None:
    hook, agent = sandbox.hook(), sandbox.agent()
    with Origins("10.77.0.1") as origin:
        code = CONNECT_LOCAL.format(port=origin.port)
        for on_failure, folder in ((OnFailure.CLOSED, pins), (OnFailure.OPEN, None), (OnFailure.CLOSED, pins)):
            hook.change(on_failure=on_failure, quic=Quic.REFUSE, pin_folder=folder)
            assert pins.exists() is (folder is not None)
            stall(hook)
            assert agent(code) == ({"answer": "origin"} if on_failure is OnFailure.OPEN else {"error": "EPERM"})
    hook.change(on_failure=OnFailure.CLOSED, quic=Quic.BYPASS, pin_folder=pins)
    assert not any("sendmsg" in pin.name for pin in pins.iterdir())
    hook.close()
    assert not pins.exists()


def test_everything_becomes_a_selection_and_ceases_to_be_one(sandbox: Sandbox) -> None:
    verdicts, runs = Map.create(MapKind.HASH, 4, 8, 16, "ms_selected"), RunCgroups()
    hook, agent = sandbox.hook(selection=Selection(verdicts.fd, runs.fd, everything=False)), sandbox.agent()
    with Origins("10.77.0.1") as origin:
        code = f"s = socket.create_connection(('10.77.0.1', {origin.port}))"
        for everything, diverted in ((False, 0), (True, 1), (False, 1)):
            hook.change(on_failure=OnFailure.OPEN, quic=Quic.REFUSE, everything=everything)
            beat(hook)
            assert agent(code) == {"answer": None}
            assert hook.diverted == diverted
    verdicts.close()
    runs.close()


def test_no_connection_slips_by_while_terms_change(sandbox: Sandbox) -> None:
    hook, agent = sandbox.hook(), sandbox.agent()
    agent.start("""
        for n in range(3000):
            s = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            s.connect_ex(('10.77.0.1', 9)); s.close()
    """)
    changes = 0
    while hook.diverted < 3000 and changes < 300:
        beat(hook)
        hook.change(on_failure=OnFailure.OPEN, quic=Quic.BYPASS if changes % 2 else Quic.REFUSE)
        changes += 1
    agent.finish()
    assert hook.diverted == 3000
    assert hook.missed() == []
    assert changes > 1
