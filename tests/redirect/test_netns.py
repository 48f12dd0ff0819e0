"""Network namespaces by cookie and by descriptor."""

from __future__ import annotations

import os
import socket

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
