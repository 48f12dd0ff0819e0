"""Pipes between sockets, and the pool of them."""

from __future__ import annotations

import resource
import socket

import pytest
from gate_house import on_loop, pair_over_loopback

from mitmsec.gate.splice import PIPES_LIMIT, Pipe, Pipes


@on_loop
async def test_bytes_go_through_a_pipe_and_are_counted() -> None:
    pipe = Pipe()
    client, near = await pair_over_loopback()
    far, server = await pair_over_loopback()
    with client, near, far, server:
        client.send(b"hello")
        assert pipe.fill(near) == pipe.held_bytes == 5
        assert pipe.drain(far) == 5
        assert pipe.held_bytes == 0
        server.setblocking(True)
        assert server.recv(10) == b"hello"
        with pytest.raises(BlockingIOError):
            pipe.fill(near)
        client.shutdown(socket.SHUT_WR)
        assert pipe.fill(near) == 0
    pipe.close()


def test_the_pool_hands_out_no_more_than_its_limit_and_takes_back_empty_ones() -> None:
    pool = Pipes(limit=2)
    first, second = pool.take(), pool.take()
    assert first is not None
    assert second is not None
    assert pool.take() is None
    pool.give_back(first)
    assert pool.take() is first
    second.held_bytes = 1  # bytes of a flow that has ended: nobody else may get them
    pool.give_back(second)
    third = pool.take()
    assert third is not None
    assert third is not second
    for pipe in (first, third):
        pool.give_back(pipe)
    pool.close()
    assert pool.made == 0


def test_without_descriptors_there_is_no_pipe_and_no_error() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        assert Pipes().take() is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_all_pipes_together_stay_within_what_the_kernel_gives_one_user() -> None:
    pipe = Pipe()
    assert pipe.size_bytes >= 65536
    assert pipe.size_bytes * PIPES_LIMIT <= 64 << 20
    pipe.close()
