"""What the `windivert` backend asks and tells whoever opened it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mitmsec.core.model import Endpoint, Process, Transport
from mitmsec_redirect.divert_library import HandleStats
from mitmsec_redirect.divert_signals import Choice, Flow, Report
from mitmsec_redirect.expected_flows import ExpectedFlow
from mitmsec_redirect.records import Origin


def expected(
    flow: Flow, process: Process, uid: int, connected_ns: int | None, gate_port: int, is_loopback: bool
) -> ExpectedFlow:
    """What the gate has to know of `flow` before it comes to `gate_port`: reflected, but for what stays on loopback."""
    client, gate = (flow.local, flow.remote) if is_loopback else (flow.remote, flow.local)
    return ExpectedFlow(
        client=Endpoint(address=client.address, port=flow.local.port),
        gate=Endpoint(address=gate.address, port=gate_port),
        origin=Origin(
            remote=flow.remote,
            pid=process.pid,
            uid=uid,
            comm=process.name or "",
            connected_ns=connected_ns or 0,
            bound=None,
            source=flow.local.address,
        ),
        process=process,
    )


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Who is asked and told. Called by one thread at a time, which holds connections up meanwhile: do not wait in them.

    They must not call the backend. What `decide` or `expect` raises follows `on_failure`, and is reported. Whose cgroup
    does not concern us, and who is not selected, is never read and never refused.
    """

    decide: Callable[[Process, Endpoint, Transport], Choice]
    expect: Callable[[ExpectedFlow], None]
    report: Callable[[Report], None]
    concerns: Callable[[int], bool] = lambda cgroup: True  # by the id of a socket's cgroup; 0: it is not known
    selects: Callable[[int], bool] = lambda pid: True  # who is not selected is not read


@dataclass(frozen=True, slots=True)
class Statistics:
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
