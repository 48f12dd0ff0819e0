"""Network namespaces by cookie and by descriptor."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from mitmsec_redirect import netns

pytestmark = pytest.mark.root


def test_a_socket_made_inside_belongs_there_and_we_stay(own_netns: None) -> None:
    inner, inner_fd = netns.current_cookie(), os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    os.unshare(os.CLONE_NEWNET)
    outer = netns.current_cookie()
    sock = netns.inside(inner_fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    assert outer != inner
    assert netns.cookie_of(sock) == inner
    assert netns.current_cookie() == outer
    assert netns.inside(None, netns.current_cookie) == outer
    sock.close()
    os.close(inner_fd)


def test_what_is_raised_inside_is_raised_outside() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        netns.inside(0x7FFFFFF, netns.current_cookie)


def test_where_no_thread_can_be_started_that_is_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="can't start new thread"):
        netns.inside(0x7FFFFFF, netns.current_cookie)


def test_a_fresh_one_is_nobody_elses_and_goes_with_its_descriptor() -> None:
    here = netns.current_cookie()
    fresh = netns.fresh()
    assert netns.inside(fresh, netns.current_cookie) not in (0, here)
    assert netns.inside(fresh, socket.if_nameindex) == [(1, "lo")]
    assert netns.current_cookie() == here
    assert not os.get_inheritable(fresh)
    os.close(fresh)


def test_without_privilege_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(flags: int) -> None:
        raise PermissionError(flags)

    monkeypatch.setattr(os, "unshare", refuse)
    with pytest.raises(PermissionError):
        netns.fresh()
