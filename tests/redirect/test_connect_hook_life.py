"""Who runs the programs, and what is left when their holder ends, however it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from descriptors import descriptors
from redirect_sandbox import CONNECT_LOCAL, V4, Agent, Origins, Sandbox, stall

from mitmsec.core.model import OnFailure
from mitmsec_redirect import bpf, bpffs, connect_hook
from mitmsec_redirect.bpf import Attach

pytestmark = pytest.mark.root


def test_a_program_outside_the_cgroup_runs_nothing(sandbox: Sandbox) -> None:
    hook = sandbox.hook()
    stats = bpf.enable_stats()
    try:
        outside, inside = sandbox.agent(inside=False), sandbox.agent()
        work = """
            l = socket.create_server(('10.77.0.1', 0)); s = connected(socket.AF_INET, l.getsockname())
            s.getpeername(); s.getsockname(); l6 = socket.create_server(('fd77::1', 0), family=socket.AF_INET6)
            t = connected(socket.AF_INET6, l6.getsockname()); t.getpeername(); t.getsockname()
            u = socket.socket(2, 2); u.sendto(b'x', ('10.77.0.1', 443)); u.connect(('10.77.0.1', 443))
        """
        assert outside(work) == {"answer": None}
        assert {count.runs for count in hook.run_counts().values()} == {0}
        inside(work)
        counts = hook.run_counts()
        assert all(counts[attach].runs for attach in counts if attach is not Attach.SENDMSG6)
    finally:
        os.close(stats)


def test_other_listeners_take_over(sandbox: Sandbox) -> None:
    """After set_port the next connection goes to the new gate, which has a second for its first beat."""
    hook, agent = sandbox.hook(), sandbox.agent()
    stall(hook)
    with socket.create_server(("127.0.0.1", 0)) as new:
        new.settimeout(5)
        hook.set_port(new.getsockname()[1], None)
        assert agent(f"s = connected({V4})") == {"answer": None}
        new.accept()[0].close()


def test_a_namespace_with_a_listener_of_its_own_is_diverted_once_it_is_allowed(sandbox: Sandbox) -> None:
    hook, agent = sandbox.hook(OnFailure.CLOSED), sandbox.agent()
    told = agent(f"""
        import ctypes, struct, subprocess
        os.unshare(os.CLONE_NEWNET); subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)
        l = socket.create_server(('127.0.0.1', {sandbox.port_v4}))
        answer = struct.unpack('=Q', l.getsockopt(socket.SOL_SOCKET, 71, 8))[0]
    """)
    hook.allow_namespace(told["answer"])
    code = f"s = connected({V4}); answer = [s.getpeername(), l.accept()[1] == s.getsockname()]"
    assert agent(code) == {"answer": [["203.0.113.9", 443], True]}


def test_pins_that_are_there_already_are_not_touched(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "bpf"
    bpffs.mount(folder)
    try:
        sandbox.hook(OnFailure.CLOSED, pin_folder=folder / "session")
        with pytest.raises(FileExistsError):
            sandbox.hook(OnFailure.CLOSED, pin_folder=folder / "session")
        assert len(list((folder / "session").iterdir())) == 8 + 8
        assert connect_hook.reap(folder / "session") == 8 + 8
    finally:
        assert bpffs.unmount(folder)


def test_detach_ends_diversion_at_once(sandbox: Sandbox) -> None:
    with Origins("10.77.0.1") as origin:
        hook, agent = sandbox.hook(), sandbox.agent()
        hook.detach()
        assert agent(CONNECT_LOCAL.format(port=origin.port)) == {"answer": "origin"}
        hook.close()
        hook.close()


def test_opening_fails_whole(sandbox: Sandbox, tmp_path: Path) -> None:
    """No cgroup: an error, and no descriptor is left."""
    before = len(descriptors())
    sandbox.cgroup.remove()
    with pytest.raises(FileNotFoundError):
        sandbox.hook()
    assert len(descriptors()) == before


HOLDER = """
import os, sys, time
from pathlib import Path
from mitmsec.core.model import OnFailure, Quic
from mitmsec_redirect import netns, records
from mitmsec_redirect.connect_hook import ConnectHook
hook = ConnectHook.open(sys.argv[1], port_v4=int(sys.argv[2]), port_v6=None, netns_cookies=[netns.current_cookie()],
    on_failure=OnFailure(sys.argv[3]), quic=Quic.REFUSE, pin_folder=Path(sys.argv[4]) if sys.argv[4] else None)
old = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - 1_100_000_000
hook._maps["heartbeat"].update(records.INDEX.pack(0), records.HEARTBEAT.pack(old))
print("ready", flush=True)
sys.stdin.read()
"""


def killed_holder(sandbox: Sandbox, on_failure: OnFailure, pins: str) -> None:
    """A supervisor holds the hook, its gate's last beat is a second old, and it is killed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(sandbox.cgroup.path), str(sandbox.port_v4), on_failure, pins],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()


def test_open_leaves_nothing_when_the_supervisor_is_killed(sandbox: Sandbox) -> None:
    with Origins("10.77.0.1") as origin:
        killed_holder(sandbox, OnFailure.OPEN, "")
        assert sandbox.agent()(CONNECT_LOCAL.format(port=origin.port)) == {"answer": "origin"}


def test_closed_denies_after_the_supervisor_is_killed_until_it_is_reaped(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "bpf"
    bpffs.mount(folder)
    try:
        with Origins("10.77.0.1") as origin:
            killed_holder(sandbox, OnFailure.CLOSED, str(folder / "session"))
            agent = sandbox.agent()
            assert agent(CONNECT_LOCAL.format(port=origin.port)) == {"error": "EPERM"}
            assert sandbox.agent(inside=False)(CONNECT_LOCAL.format(port=origin.port)) == {"answer": "origin"}
            assert connect_hook.reap(folder / "session") == 8 + 8
            assert agent(CONNECT_LOCAL.format(port=origin.port)) == {"answer": "origin"}
            assert connect_hook.reap(folder / "session") == 0
    finally:
        assert bpffs.unmount(folder)


def test_closing_a_pinned_hook_removes_its_pins(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "bpf"
    bpffs.mount(folder)
    try:
        hook = sandbox.hook(OnFailure.CLOSED, pin_folder=folder / "session")
        assert len(list((folder / "session").iterdir())) == 8 + 8
        hook.close()
        assert not (folder / "session").exists()
    finally:
        assert bpffs.unmount(folder)


def test_an_agent_is_a_process_of_its_own() -> None:
    agent = Agent(None)
    assert agent("answer = os.getpid()") == {"answer": agent.pid}
    assert agent.pid != os.getpid()
    agent.close()
