"""What the `windivert` backend asks and tells whoever opened it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mitmsec.core.model import Caller, Endpoint, Process, Transport, Value
from mitmsec_redirect.divert_library import HandleStats
from mitmsec_redirect.divert_signals import Choice, Flow, Report, SocketConnected
from mitmsec_redirect.expected_flows import ExpectedFlow
from mitmsec_redirect.records import Origin


def expected(
    flow: Flow, process: Process, told: SocketTold, connected_ns: int | None, gate_port: int, is_loopback: bool
) -> ExpectedFlow:
    """What the gate has to know of `flow` before it comes to `gate_port`: reflected, but for what stays on loopback.

    Its caller counts as selected; who knows better says so before it is announced.
    """
    client, gate = (flow.local, flow.remote) if is_loopback else (flow.remote, flow.local)
    return ExpectedFlow(
        client=Endpoint(address=client.address, port=flow.local.port),
        gate=Endpoint(address=gate.address, port=gate_port),
        origin=Origin(
            remote=flow.remote,
            pid=process.pid,
            uid=told.uid if told.call is None else told.call.uid,
            comm=(process.name or "") if told.call is None else told.call.comm,
            connected_ns=connected_ns or 0,
            bound=None,
            source=flow.local.address,
            caller=None if told.call is None else told.call.caller,
            selected=True,
        ),
        process=process,
    )


class Call(Value, frozen=True):
    """Who called connect(), as the kernel noted it then, whatever the process has become since."""

    pid: int
    uid: int
    comm: str  # of the thread
    connected_ns: int
    remote: Endpoint  # where to
    caller: Caller | None  # None: the kernel's types are not known


class SocketTold(Value, frozen=True):
    """What the system says of the socket that sent a first packet; on Windows nothing but its transport."""

    transport: Transport
    cookie: int | None = None
    uid: int = 0
    cgroup: int = 0  # the id of its cgroup; 0: it is not known
    call: Call | None = None  # where calls are noted, and this one is
    fault: str = ""  # why the system could not be asked


def connected(told: SocketTold) -> list[SocketConnected]:
    """The event of its call, if that is noted; the system's own one may come later, or be lost."""
    call = told.call
    if call is None:
        return []
    event = SocketConnected(transport=told.transport, pid=call.pid, connected_ns=call.connected_ns, cookie=told.cookie)
    return [event]


class Closes(Protocol):
    """What has to be closed when the backend is."""

    def close(self) -> None: ...


class Callbacks(Value, frozen=True):
    """Who is asked and told. Called by one thread at a time, which holds connections up meanwhile: do not wait in them.

    They must not call the backend. What `decide` or `expect` raises follows `on_failure`, and is reported. Whose socket
    does not concern us, and who is not selected with it, is never read and never refused. Where what is known of a
    process does not suffice to decide, and more is on its way, its connection waits for that (`divert_asking`), and no
    other.
    """

    decide: Callable[[Process, Endpoint, SocketTold], Choice]
    expect: Callable[[ExpectedFlow, SocketTold], None]
    report: Callable[[Report], None]
    concerns: Callable[[SocketTold], bool] = lambda told: True
    selects: Callable[[int, SocketTold], bool] = lambda pid, told: True
    suffices: Callable[[Process], bool] = lambda process: True  # for example `Policy.can_judge`


class Statistics(Value, frozen=True):
    """Counted since `open`."""

    diverted: int  # connections
    left: int  # connections that went their way; so do those that were released undecided
    refused: int
    live: int  # now
    held: int  # now
    unsent: int  # packets that the system did not take back
    strays: int  # packets of the gate that belonged to no flow
    syns: HandleStats
    data: HandleStats
    events: HandleStats
