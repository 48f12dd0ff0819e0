"""A network namespace of its own for a test, a cgroup, the gate's listeners, and programs that are told what to do."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any
from weakref import WeakSet

from mitmsec.core.model import Endpoint, OnFailure, Quic
from mitmsec_redirect import netns, records
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.executable_paths import ExecutablePaths
from mitmsec_redirect.heartbeat import Heartbeat
from mitmsec_redirect.origins import Origin, OriginTable, parse_origin
from mitmsec_redirect.records import Missed
from mitmsec_redirect.sockdiag import CookieLookup
from mitmsec_redirect.steps import Selection

AGENT = """
import errno, json, os, socket, sys
if sys.argv[1]:
    open(sys.argv[1] + "/cgroup.procs", "w").write("0")
def connected(family, address, **options):
    s = socket.socket(family)
    s.settimeout(5)
    s.connect(address)
    return s
space = dict(globals())
print(json.dumps({"answer": os.getpid()}), flush=True)
for line in sys.stdin:
    space["answer"] = None
    try:
        exec(json.loads(line), space)
        told = {"answer": space["answer"]}
    except OSError as error:
        told = {"error": errno.errorcode.get(error.errno, str(error))}
    print(json.dumps(told), flush=True)
"""
# no link-local addresses: the kernel would add them, and their routes, some time after a test began
LINKS = """
link set lo up
link add va type veth peer name vb
link set va addrgenmode none
link set vb addrgenmode none
addr add 10.77.0.1/24 dev va
addr add fd77::1/64 dev va nodad
link set va up
link set vb up
"""
DEFAULT_ROUTES = """
route add default via 10.77.0.2
-6 route add default via fd77::2
"""
V4 = "socket.AF_INET, ('203.0.113.9', 443)"
V6 = "socket.AF_INET6, ('2001:db8::9', 443)"
MAPPED = "socket.AF_INET6, ('::ffff:203.0.113.9', 443)"
CONNECT_LOCAL = "s = connected(socket.AF_INET, ('10.77.0.1', {port})); answer = s.recv(99).decode()"
_numbers = itertools.count()


def ip(commands: str) -> None:
    """Run ip(8) once a line."""
    for line in commands.strip().splitlines():
        if line:
            subprocess.run(["ip", *line.split()], check=True, capture_output=True)


class Agent:
    """A Python process that runs what it is told, in the cgroup or outside."""

    def __init__(self, cgroup: Path | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", AGENT, str(cgroup or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid: int = self._told()["answer"]

    def _told(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told

    def start(self, code: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(textwrap.dedent(code)) + "\n")
        self._process.stdin.flush()

    def finish(self) -> dict[str, Any]:
        """What the code left in `answer`, or the name of the errno that it raised."""
        return self._told()

    def __call__(self, code: str) -> dict[str, Any]:
        self.start(code)
        return self.finish()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate(timeout=10)


class Sandbox:
    """What a test of the hook needs; everything goes with `held`."""

    def __init__(self, held: contextlib.ExitStack) -> None:
        self._held = held
        self._hooks: list[ConnectHook] = []
        self.cgroup = SessionCgroup.create("test", f"{os.getpid()}-{next(_numbers)}")
        held.callback(self.cgroup.remove)
        self.listener_v4 = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listener_v6 = held.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        for listener in (self.listener_v4, self.listener_v6):
            listener.settimeout(5)
        self.port_v4: int = self.listener_v4.getsockname()[1]
        self.port_v6: int = self.listener_v6.getsockname()[1]
        self.cookies = CookieLookup()
        held.callback(self.cookies.close)

    def hook(
        self,
        on_failure: OnFailure = OnFailure.OPEN,
        quic: Quic = Quic.REFUSE,
        pin_folder: Path | None = None,
        v6: bool = True,
        selection: Selection | None = None,
        paths: ExecutablePaths | None = None,
        *,
        has_quic_relay: bool = False,
    ) -> ConnectHook:
        opened = ConnectHook.open(
            self.cgroup.path,
            port_v4=self.port_v4,
            port_v6=self.port_v6 if v6 else None,
            netns_cookies=[netns.current_cookie()],
            on_failure=on_failure,
            quic=quic,
            pin_folder=pin_folder,
            selection=selection,
            paths=paths,
            has_quic_relay=has_quic_relay,
        )
        self._held.callback(opened.close)
        self._hooks.append(opened)
        return opened

    def agent(self, *, inside: bool = True) -> Agent:
        """It takes a while to start; no gate has stalled for that."""
        agent = Agent(self.cgroup.path if inside else None)
        self._held.callback(agent.close)
        for hook in self._hooks:
            if hook not in _STALLED:
                beat(hook)
        return agent

    def accept(self, hook: ConnectHook, *, v6: bool = False) -> Origin | None:
        """The origin of the next connection to the gate."""
        accepted, _ = (self.listener_v6 if v6 else self.listener_v4).accept()
        self._held.callback(accepted.close)
        client, gate = (Endpoint.of(*name[:2]) for name in (accepted.getpeername(), accepted.getsockname()))
        cookie = self.cookies.cookie_of(client, gate)
        told = None if cookie is None else OriginTable(hook.origins_fd).take(cookie)
        return None if told is None else parse_origin(told)

    def nobody_came(self) -> bool:
        """Neither listener has a connection waiting."""
        for listener in (self.listener_v4, self.listener_v6):
            listener.setblocking(False)
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                listener.settimeout(5)
                continue
            return False
        return True


_STALLED: WeakSet[ConnectHook] = WeakSet()


def beat(hook: ConnectHook) -> None:
    Heartbeat(hook.heartbeat_fd).beat()


def stall(hook: ConnectHook) -> None:
    """The gate's last beat was just over a second ago."""
    _STALLED.add(hook)
    old = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - 1_100_000_000
    hook._maps["heartbeat"].update(records.INDEX.pack(0), records.HEARTBEAT.pack(old))


def follow(box: Sandbox, hook: ConnectHook, on_failure: OnFailure, code: str) -> Missed:
    """Run `code`, whose answer is what a real origin says, and see that it followed `on_failure`."""
    told = box.agent()(code)
    assert told == ({"answer": "origin"} if on_failure is OnFailure.OPEN else {"error": "EPERM"})
    (missed,) = hook.missed()
    assert missed.denied is (on_failure is OnFailure.CLOSED)
    assert box.nobody_came()
    assert hook.lost() == {}
    return missed


class Origins:
    """An origin on each local address that says "origin" to whoever connects."""

    def __init__(self, address: str, family: int = socket.AF_INET) -> None:
        code = (
            "import socket,sys; l = socket.create_server((sys.argv[1], 0), family=int(sys.argv[2]));"
            "print(l.getsockname()[1], flush=True)\nwhile True: c, _ = l.accept(); c.sendall(b'origin'); c.close()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, address, str(int(family))], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def __enter__(self) -> Origins:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
