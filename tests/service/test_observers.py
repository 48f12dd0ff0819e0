"""What a kernel will not have told of callers is on record, and in the log; real hooks, and a kernel that refuses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from mitmsec.audit.event import ServiceSeen
from mitmsec.core.model import OnFailure, Quic
from mitmsec.core.policy import Policy
from mitmsec.service.observers import Observers
from mitmsec.service.scopes import CommandScope
from mitmsec_redirect import bpf, netns, nflog, nft
from mitmsec_redirect.backend import Backend, BackendKind
from mitmsec_redirect.bpf import Attach, ProgramRejected
from mitmsec_redirect.cgroup import SessionCgroup
from mitmsec_redirect.connect_hook import ConnectHook
from mitmsec_redirect.executable_paths import ExecutablePaths
from mitmsec_redirect.nftables import Nftables
from mitmsec_redirect.processes import ProcessTable

pytestmark = pytest.mark.root
READ_STRING, CURRENT_TASK = 115, 158  # helpers
RULES = pytest.param(
    BackendKind.NFTABLES,
    marks=pytest.mark.skipif(
        shutil.which("nft", path=nft.FOLDERS) is None, reason="nft is not installed (Debian: nftables)"
    ),
)


@pytest.fixture
def cgroup() -> Iterator[SessionCgroup]:
    made = SessionCgroup.create("test", f"observers-{os.getpid()}")
    yield made
    made.remove()


def refuse(monkeypatch: pytest.MonkeyPatch, helper: int) -> None:
    plain: Callable[[bytes, Attach, str], int] = bpf.load_program

    def load(code: bytes, attach: Attach, name: str) -> int:
        if code.find(bytes((0x85, 0, 0, 0)) + helper.to_bytes(4, "little")) >= 0:
            raise ProgramRejected(22, f"load the program {name}\nunknown func #{helper}\nprocessed 7 insns")
        return plain(code, attach, name)

    monkeypatch.setattr(bpf, "load_program", load)


@contextlib.contextmanager
def diverting(cgroup: SessionCgroup, kind: BackendKind, paths: ExecutablePaths) -> Iterator[Backend]:
    """A backend that nobody's connections come by; rules in a network namespace of their own."""
    terms: dict[str, Any] = {"port_v4": 1, "port_v6": 1, "on_failure": OnFailure.OPEN, "quic": Quic.REFUSE}
    if kind is BackendKind.CONNECT_HOOK:
        with ConnectHook.open(cgroup.path, netns_cookies=[1], paths=paths, **terms) as hook:
            yield hook
    else:
        namespace = netns.fresh()
        try:
            with Nftables.open(cgroup.path, netns_fd=namespace, **terms) as rules:
                yield rules
        finally:
            os.close(namespace)


def begun(cgroup: SessionCgroup, kind: BackendKind = BackendKind.CONNECT_HOOK) -> tuple[list[Any], list[str]]:
    """What is recorded and logged when the observers of a run begin."""
    recorded: list[Any] = []
    logged: list[str] = []

    async def story() -> None:
        scope, paths = CommandScope(cgroup), ExecutablePaths()
        processes = ProcessTable(paths=paths)
        with diverting(cgroup, kind, paths) as hook:
            ground: Any = SimpleNamespace(
                name="run-1",
                policy=Policy(),
                hook=hook,
                network=-1,
                shared=SimpleNamespace(record=recorded.append, log=logged.append),
                processes=processes,
                who_missed=None,
                pins=None,
            )
            observers = Observers(ground, SimpleNamespace())  # type: ignore[arg-type]  # nobody connects
            observers.begin(kind, scope)
            assert (observers.names_fd is not None) is (observers._udp._hook is not None)
            await observers.finish()
            observers.close()
        processes.close()
        paths.close()

    asyncio.run(story())
    return recorded, logged


@pytest.mark.parametrize("kind", [BackendKind.CONNECT_HOOK, RULES])
def test_where_all_is_told_nothing_is_said_of_it(cgroup: SessionCgroup, kind: BackendKind) -> None:
    assert begun(cgroup, kind) == ([], [])


@pytest.mark.parametrize("kind", [RULES])
def test_rules_that_cannot_tell_of_udp_say_so(
    cgroup: SessionCgroup, kind: BackendKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nflog, "GROUPS", range(0))
    (event,), (line,) = begun(cgroup, kind)
    assert (event.operation, event.detail.startswith("udp: ")) == ("tells_less", True)
    assert line.startswith("UDP is not recorded, and no name comes from DNS: ")


def test_executables_that_no_hook_may_note_are_told_once(
    cgroup: SessionCgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, READ_STRING)
    detail = "executable_paths: unknown func #115"
    recorded, (line,) = begun(cgroup)
    assert recorded == [ServiceSeen(operation="tells_less", session="run-1", detail=detail)]
    assert line.startswith("where executables lie is not noted")
    assert "lockdown" in line


def test_callers_that_no_hook_may_look_at_are_told_too(cgroup: SessionCgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, CURRENT_TASK)
    recorded, (unseen, less) = begun(cgroup)
    assert [event.detail for event in recorded] == ["callers: unknown func #158"]
    assert less.startswith("callers are told by their pids alone")
    assert unseen.startswith("incoming connections are not seen")
