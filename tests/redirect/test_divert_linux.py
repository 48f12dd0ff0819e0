"""What `windivert` finds on Linux, found there."""

from __future__ import annotations

import contextlib
import os
import subprocess
from contextlib import ExitStack

import pytest
from divert_sandbox import link_to_an_origin

from mitmsec.core.model import Confidence
from mitmsec_redirect import clsact
from mitmsec_redirect.divert_library import open_handle
from mitmsec_redirect.divert_linux import LinuxDivert, real_uid
from mitmsec_redirect.divert_records import Layer
from mitmsec_redirect.socket_table import DiagTable


@pytest.mark.root
def test_the_user_is_the_processs_own_not_that_of_who_made_the_socket() -> None:
    with subprocess.Popen(["sleep", "10"], user=65534) as other:
        assert real_uid(other.pid, 0) == 65534
        with contextlib.closing(LinuxDivert().owners()) as owners:
            assert owners.owner(other.pid, 0, None, Confidence.TABLE).process.user == "nobody"
        other.kill()


def test_of_a_process_that_has_gone_the_sockets_user_counts() -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    assert (real_uid(done.pid, 12345), real_uid(os.getpid(), 12345)) == (12345, os.getuid())


@pytest.mark.root
def test_what_is_prepared_is_tidied_up_in_the_end() -> None:
    with link_to_an_origin(), contextlib.closing(clsact.TrafficControl()) as control:
        with ExitStack() as held:
            LinuxDivert().prepare(held)
            open_handle("outbound and tcp.Syn", Layer.NETWORK).close()
            assert control.clsact() != frozenset(), "what the library leaves"
        assert control.clsact() == frozenset()


def test_the_table_of_sockets_is_the_kernels_own() -> None:
    with contextlib.closing(LinuxDivert().sockets()) as table:
        assert isinstance(table, DiagTable)
