"""What the rules do when their owner dies or hangs, and how they go."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from nft_stage import TRY, holder, needs_nft, ruleset, wait_for
from redirect_sandbox import CONNECT_LOCAL, Origins, Sandbox

from mitmsec.core.model import OnFailure
from mitmsec_redirect import nft

pytestmark = [pytest.mark.root, needs_nft]
LIMIT_S = 1.6  # a second since the last beat, and what this machine's other jobs take
GATE, ORIGIN, REFUSED = {"answer": "gate"}, {"answer": "origin"}, {"error": "ECONNREFUSED"}


@pytest.fixture(autouse=True)
def _nothing_is_left(own_netns: None) -> Iterator[None]:
    yield
    assert ruleset() == ""


def test_open_is_open_within_a_second_of_its_owners_death(sandbox: Sandbox) -> None:
    with Origins("10.77.0.1") as origin, holder(sandbox.cgroup.path, OnFailure.OPEN) as owner:
        agent, code = sandbox.agent(), TRY.format(port=origin.port)
        assert agent(code) == GATE
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert wait_for(agent, code, ORIGIN, LIMIT_S) < LIMIT_S
        quic = "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.sendto(b'x', ('203.0.113.9', 443))"
        assert agent(quic) == {"answer": None}, "what remains of the table refuses nothing"
        name = sandbox.cgroup.path.name
        assert [table.name for table in nft.leftovers("mitmsec-")] == [name]
        assert nft.reap("mitmsec-test-") == [name]
        assert nft.reap("mitmsec-test-") == []
        assert agent(code) == ORIGIN


def test_closed_refuses_from_its_owners_death_until_it_is_reaped(sandbox: Sandbox) -> None:
    with Origins("10.77.0.1") as origin, holder(sandbox.cgroup.path, OnFailure.CLOSED) as owner:
        agent, outside, code = sandbox.agent(), sandbox.agent(inside=False), TRY.format(port=origin.port)
        assert agent(code) == GATE
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        died = time.monotonic()
        while time.monotonic() - died < 2:  # first the gate's port is dead, then the heartbeat is
            assert agent(code) == REFUSED
            time.sleep(0.05)
        assert outside(CONNECT_LOCAL.format(port=origin.port)) == ORIGIN
        assert nft.reap("mitmsec-test-", keep=[sandbox.cgroup.path.name]) == []
        assert agent(code) == REFUSED
        assert len(nft.reap("mitmsec-test-")) == 1
        assert agent(code) == ORIGIN


@pytest.mark.parametrize("on_failure", OnFailure)
def test_an_owner_that_hangs_is_left_alone_within_a_second_until_it_goes_on(
    sandbox: Sandbox, on_failure: OnFailure
) -> None:
    with Origins("10.77.0.1") as origin, holder(sandbox.cgroup.path, on_failure) as owner:
        agent, code = sandbox.agent(), TRY.format(port=origin.port)
        assert agent(code) == GATE
        owner.send_signal(signal.SIGSTOP)
        wait_for(agent, code, ORIGIN if on_failure is OnFailure.OPEN else REFUSED, LIMIT_S)
        assert nft.reap("mitmsec-test-") == [], "it hangs, but it lives"
        owner.send_signal(signal.SIGCONT)
        wait_for(agent, code, GATE, LIMIT_S)
        owner.kill()
        owner.wait()
        assert len(nft.reap("mitmsec-test-")) == 1
