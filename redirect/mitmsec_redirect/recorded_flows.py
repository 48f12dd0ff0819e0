"""The flows in a capture: packets in the order of the file become connections, each with its process.

    CapturedName ──► hosts by address ─┐
    CapturedPacket ── heading ──► flow by its two ends ──► RecordedFlow, when it or the file ends
                      comments ──► process, and what else was said ("action: decrypt")

mitmsec's own captures say everything about a process in the first packet's comment (mitmsec.capture.comment); other
tools' have a process event block at best, which is worth less. Who opened a flow is known from its first segment, else
from the direction that was noted; without either the first packet's sender counts as local.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from mitmsec.core.model import Confidence, Endpoint, ParentProcess, Process, Transport, Value
from mitmsec_redirect.headings import FIN, RST, Heading, Unread, read
from mitmsec_redirect.pcapng_blocks import CapturedName, CapturedPacket, CapturedProcess

SOURCE = "replay"
HOSTS_LIMIT = 65536
FLOWS_LIMIT = 65536  # at once; then the one that began first is told as it is
LINK_ETHERNET, LINK_RAW, LINK_IPV4, LINK_IPV6 = 1, 101, 228, 229
ETHERNET_BYTES: Final = 14
ETHERNET_IP: Final = frozenset({b"\x08\x00", b"\x86\xdd"})
_PARENT = re.compile(r"(.*) pid (\d{1,10})")
_FOUND_BY = re.compile(r"(.*) \((kernel|table|inferred|unknown)\)")
_PID = re.compile(r"\d{1,10}")


class RecordedFlow(Value, frozen=True):
    """One connection, or one conversation over UDP, as a capture tells it."""

    transport: Transport
    local: Endpoint
    remote: Endpoint
    outbound: bool  # opened by `local`
    process: Process
    host: str | None  # the name of `remote` in the file
    first_ns: int  # since 1970
    last_ns: int
    sent_bytes: int  # payload, by local
    received_bytes: int
    is_reset: bool
    said: Mapping[str, str]  # other lines of the comments, e.g. flow, action, rule, outcome


class _Flow(msgspec.Struct):
    heading: Heading  # of the first packet, so seen that its source is local
    outbound: bool
    host: str | None
    first_ns: int
    last_ns: int
    process: Process | None = None
    sent_bytes: int = 0
    received_bytes: int = 0
    closing: int = 0  # FIN and RST so far
    said: dict[str, str] = msgspec.field(default_factory=dict)

    def finished(self) -> RecordedFlow:
        return RecordedFlow(
            transport=self.heading.transport,
            local=self.heading.source,
            remote=self.heading.destination,
            outbound=self.outbound,
            process=self.process or Process(pid=0, source=SOURCE),
            host=self.host,
            first_ns=self.first_ns,
            last_ns=self.last_ns,
            sent_bytes=self.sent_bytes,
            received_bytes=self.received_bytes,
            is_reset=bool(self.closing & RST),
            said=self.said,
        )


class RecordedFlows:
    """Add what the file holds, in its order; take flows when they are whole. Bounded."""

    def __init__(self) -> None:
        self.unread = 0  # packets without a heading: later fragments, other protocols, damage, unknown link types
        self._hosts: dict[str, str] = {}
        self._flows: dict[tuple[Transport, Endpoint, Endpoint], _Flow] = {}

    def add(self, events: Iterable[CapturedPacket | CapturedName]) -> Iterator[RecordedFlow]:
        """Flows that these have ended: the same ports are used again, or there were too many at once."""
        for event in events:
            if isinstance(event, CapturedName):
                self._hosts[event.address] = event.host
                if len(self._hosts) > HOSTS_LIMIT:
                    del self._hosts[next(iter(self._hosts))]
            else:
                yield from self._packet(event)

    def end(self) -> Iterator[RecordedFlow]:
        """The rest, in the order in which they began."""
        flows, self._flows = self._flows, {}
        return (flow.finished() for flow in flows.values())

    def _packet(self, packet: CapturedPacket) -> Iterator[RecordedFlow]:
        heading = read(_network(packet))
        if isinstance(heading, Unread):
            self.unread += 1
            return
        key = (heading.transport, heading.source, heading.destination)
        there = (heading.transport, heading.destination, heading.source)
        if heading.opens:
            yield from (old.finished() for old in (self._flows.pop(key, None), self._flows.pop(there, None)) if old)
        if key in self._flows or there in self._flows:
            is_sent = key in self._flows
            flow = self._flows[key if is_sent else there]
        else:
            flow, is_sent = self._begin(packet, heading)
            if len(self._flows) > FLOWS_LIMIT:
                yield self._flows.pop(next(iter(self._flows))).finished()
        _count(flow, packet, heading, is_sent=is_sent)

    def _begin(self, packet: CapturedPacket, heading: Heading) -> tuple[_Flow, bool]:
        """A new flow, and whether its first packet was sent by its local side."""
        is_sent = packet.outbound is not False
        local, remote = (heading.source, heading.destination) if is_sent else (heading.destination, heading.source)
        seen = Heading(heading.transport, local, remote, 0)
        # a first segment says who opens; of a flow that began before the file did, being local is all that is known
        flow = _Flow(
            heading=seen,
            outbound=is_sent if heading.opens else True,
            host=self._hosts.get(remote.address),
            first_ns=packet.time_ns,
            last_ns=packet.time_ns,
        )
        self._flows[seen.transport, local, remote] = flow
        return flow, is_sent


def _count(flow: _Flow, packet: CapturedPacket, heading: Heading, *, is_sent: bool) -> None:
    flow.first_ns = min(flow.first_ns, packet.time_ns)
    flow.last_ns = max(flow.last_ns, packet.time_ns)
    flow.closing |= heading.tcp_flags & (FIN | RST)
    if is_sent:
        flow.sent_bytes += heading.payload_bytes
    else:
        flow.received_bytes += heading.payload_bytes
    for comment in packet.comments:
        process, said = told(comment)
        flow.process = flow.process or process
        flow.said.update(said)
    if flow.process is None and packet.process is not None:
        flow.process = _named(packet.process)


def _network(packet: CapturedPacket) -> bytes:
    """The packet from its IP header on; nothing where there is none that we know of."""
    match packet.link_type:
        case 101 | 228 | 229:
            return packet.data
        case 1 if packet.data[12:14] in ETHERNET_IP:
            return packet.data[ETHERNET_BYTES:]
        case _:
            return b"\0"


def _named(captured: CapturedProcess) -> Process:
    """What a foreign tool's process event is worth: it says who, but not how it knows."""
    return Process(pid=captured.pid, name=captured.name or None, source=SOURCE, confidence=Confidence.INFERRED)


def told(comment: str) -> tuple[Process | None, dict[str, str]]:
    """The process that a comment describes in full, if it does, and its other lines, `key: value` each."""
    pairs = dict(line.split(": ", 1) for line in comment.splitlines() if ": " in line)
    if not {"process", "pid"} <= pairs.keys() or not _PID.fullmatch(pairs["pid"]):
        return None, pairs
    program, pid = pairs.pop("process"), int(pairs.pop("pid"))
    found_by = _FOUND_BY.fullmatch(pairs.pop("owner found by", ""))
    parent = _PARENT.fullmatch(pairs.pop("parent", ""))
    is_path = "/" in program or "\\" in program
    process = Process(
        pid=pid,
        started=pairs.pop("started", None),
        exe=program if is_path else None,
        name=re.split(r"[/\\]", program)[-1] if program != "unknown" else None,
        sha256=pairs.pop("sha256", None),
        user=pairs.pop("user", None),
        parent=_parent(parent) if parent else None,
        source=found_by[1] if found_by else SOURCE,
        confidence=Confidence(found_by[2]) if found_by else Confidence.UNKNOWN,
    )
    return process, pairs


def _parent(match: re.Match[str]) -> ParentProcess:
    return ParentProcess(pid=int(match[2]), exe=None if match[1] == "unknown" else match[1])
