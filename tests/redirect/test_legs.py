"""The gate's legs: told to the kernel, connected once, and gone when the connection is over."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from redirect_sandbox import Sandbox
from steering_stage import Stage

pytestmark = pytest.mark.root


@pytest.fixture
def stage(sandbox: Sandbox) -> Iterator[Stage]:
    with contextlib.ExitStack() as held:
        yield Stage(sandbox, held)


def test_a_leg_connects_once(stage: Stage) -> None:
    port = stage.listen("127.0.0.1")
    stage.call("127.0.0.1", port)
    leg = stage.leg(stage.led())
    with leg.connect() as sock:
        assert not sock.getblocking()
        with pytest.raises(OSError, match="already connected"):
            leg.connect()


def test_a_leg_that_is_not_used_leaves_nothing(stage: Stage) -> None:
    port = stage.listen("127.0.0.1")
    stage.call("127.0.0.1", port)
    leg = stage.leg(stage.led())
    assert len(list(stage.steering._maps["legs"].keys())) == 1
    leg.close()
    leg.close()
    assert list(stage.steering._maps["legs"].keys()) == []


def test_a_listener_that_has_closed_meanwhile_is_nobodys(stage: Stage) -> None:
    port = stage.listen("127.0.0.1")
    stage.call("127.0.0.1", port)
    led = stage.led()
    stage.agent("l.close()")
    leg = stage.leg(led)
    assert leg.listener is None
    sock = leg.connect()
    sock.setblocking(True)
    with sock, pytest.raises(OSError, match=r"refused|not connected"):
        sock.recv(1)


def test_of_a_connection_that_has_gone_there_is_no_leg(stage: Stage) -> None:
    with socket.socket() as nobody, pytest.raises(OSError, match="not connected"):
        stage.legs.begin(nobody)
