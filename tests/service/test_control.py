"""The control socket works however deep the state lies, and knows who is at the other end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mitmsec.channel import PACKET_LIMIT_BYTES, Channel
from mitmsec.core.content_orders import ApproveUnmasking, EraseContent, LimitContent, RequestUnmasking, Unmask
from mitmsec.core.messages import encode
from mitmsec.service import control


@pytest.mark.root
def test_it_is_reached_below_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 40) / ("er" * 60)
    folder.mkdir(parents=True)
    listener = control.listen(folder / "control.sock", gid=0)
    replaced = control.listen(folder / "control.sock", gid=0)  # a dead owner's is taken over
    client = Channel(control.connect(folder / "control.sock"), control.FROM_SUPERVISOR)
    accepted, _ = replaced.accept()
    assert control.peer(accepted) == (os.getpid(), os.getuid())
    server = Channel(accepted, control.FROM_RUN)
    client.send(control.CommandEnded(status=3, wait=False))
    assert server.exchange(None, timeout_s=5) == (control.CommandEnded(status=3, wait=False), [])
    for end in (client, server, listener, replaced):
        end.close()


def test_the_group_that_may_read_may_ask_to_see_evidence_and_agree_but_erases_and_limits_nothing() -> None:
    assert {RequestUnmasking, ApproveUnmasking, Unmask} < set(control.READING) < set(control.FROM_RUN)
    assert {EraseContent, LimitContent}.isdisjoint(control.READING)
    assert LimitContent not in control.FROM_RUN  # the policy's to say


def test_where_nobody_listens_connecting_fails(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        control.connect(tmp_path / "control.sock")


def test_an_answer_fits_into_a_packet_however_many_run() -> None:
    """A thousand runs of 64 workers, with the longest names that an order may carry."""
    sessions = [(f"{number:08x}", "p" * 1024, "c" * 1024) for number in range(1000)]
    processes = [("recorder", 4_000_000 + number, "deadbeef") for number in range(64_000)]
    answer = control.status_answer(1, sessions, processes)
    assert len(encode(answer)) < PACKET_LIMIT_BYTES
    assert answer.left_out == 65_000 - len(answer.sessions) - len(answer.processes)
    assert control.status_answer(1, sessions[:2], processes[:130]).left_out == 0
