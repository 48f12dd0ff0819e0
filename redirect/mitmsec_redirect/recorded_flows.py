"""The flows in a capture: packets in the order of the file become connections, each with its process.

    CapturedName ──► hosts by address ─┐
    CapturedPacket ── heading ──► flow by its two ends ──► RecordedFlow, when it or the file ends
                      comments ──► process, and what else was said ("action: decrypt")
                      segments ──► what it says first (`openings`)
                      datagrams to port 443 ──► whom QUIC asks for (mitmsec.core.quic_opening)

mitmsec's own captures say everything about a process in the first packet's comment (mitmsec.capture.comment); other
tools' have a process event block at best, which is worth less. Who opened a flow is known from its first segment, else
from the direction that was noted; without either the first packet's sender counts as local.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from mitmsec.core.clienthello import ClientHello
from mitmsec.core.model import Confidence, Endpoint, ParentProcess, Process, Transport, Value
from mitmsec.core.quic_opening import QuicOpening
from mitmsec.core.quic_packets import Cipher
from mitmsec.core.sniff import Malformed, NeedMore, Sniffed
from mitmsec_redirect.headings import FIN, RST, Heading, Segment, Unread, datagram, read, segment
from mitmsec_redirect.link_types import network
from mitmsec_redirect.openings import Opening
from mitmsec_redirect.pcapng_blocks import CapturedName, CapturedPacket, CapturedProcess

SOURCE = "replay"
QUIC_PORT = 443
HOSTS_LIMIT = 65536
FLOWS_LIMIT = 65536  # at once; then the one that began first is told as it is
HELD_LIMIT_BYTES = 64 << 20  # of all first bytes that are not settled; what comes beyond stays unknown
SAID_LIMIT_CHARS = 64 << 20  # of all comments, likewise
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
    host: str | None  # the name of `remote` in the file, else the one that QUIC asks for
    first_ns: int  # since 1970
    last_ns: int
    sent_bytes: int  # payload, by local
    received_bytes: int
    is_reset: bool
    said: Mapping[str, str]  # other lines of the comments, e.g. flow, action, rule, outcome
    shown: Sniffed | Malformed | None = None  # by its first bytes; None: they are not all in the file


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
    said_chars: int = 0  # of the comments that were read
    said: dict[str, str] = msgspec.field(default_factory=dict)
    opening: Opening | None = None  # of a TCP connection whose first segment is in the file
    quic: QuicOpening | None = None  # of UDP to QUIC_PORT, until its answer is there
    is_quic_settled: bool = False

    @property
    def held_bytes(self) -> int:
        """Of its first bytes."""
        return sum(one.held_bytes for one in (self.opening, self.quic) if one is not None)

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
            shown=None if self.opening is None else self.opening.shown,
        )


class RecordedFlows:
    """Add what the file holds, in its order; take flows when they are whole. Bounded.

    Without a cipher nobody looks into QUIC.
    """

    def __init__(self, cipher: Cipher | None = None) -> None:
        self._cipher = cipher
        self.unread = 0  # packets without a heading: later fragments, other protocols, damage, unknown link types
        self._hosts: dict[str, str] = {}
        self._flows: dict[tuple[Transport, Endpoint, Endpoint], _Flow] = {}
        self._held_bytes = self._said_chars = 0

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
        return (self._finished(flow) for flow in flows.values())

    def _packet(self, packet: CapturedPacket) -> Iterator[RecordedFlow]:
        data = network(packet.link_type, packet.data)
        heading = read(data) if data else Unread.MALFORMED
        if isinstance(heading, Unread):
            self.unread += 1
            return
        key = (heading.transport, heading.source, heading.destination)
        there = (heading.transport, heading.destination, heading.source)
        if heading.opens:
            old = (self._flows.pop(key, None), self._flows.pop(there, None))
            yield from (self._finished(flow) for flow in old if flow)
        if key in self._flows or there in self._flows:
            is_sent = key in self._flows
            flow = self._flows[key if is_sent else there]
        else:
            flow, is_sent = self._begin(packet, heading)
            if len(self._flows) > FLOWS_LIMIT:
                yield self._finished(self._flows.pop(next(iter(self._flows))))
        _count(flow, packet, heading, is_sent=is_sent)
        self._read_comments(flow, packet)
        before = flow.held_bytes
        self._hear(flow, heading, data, by_opener=is_sent is flow.outbound)
        self._hear_quic(flow, heading, data)
        self._held_bytes += flow.held_bytes - before

    def _finished(self, flow: _Flow) -> RecordedFlow:
        self._held_bytes -= flow.held_bytes
        self._said_chars -= flow.said_chars
        return flow.finished()

    def _hear(self, flow: _Flow, heading: Heading, data: bytes, *, by_opener: bool) -> None:
        """What the segment says of the connection's first bytes."""
        if heading.transport is not Transport.TCP or (flow.opening is not None and flow.opening.is_settled):
            return
        said = segment(data)
        assert said is not None, "it has a heading"
        if heading.opens:
            flow.opening = Opening(said.sequence)
            said = Segment(said.sequence + 1, said.payload)  # a SYN has a number of its own; data may come with it
        opening = flow.opening
        if opening is None:
            return
        before = opening.held_bytes
        if by_opener:
            opening.client_says(said.sequence, said.payload)
        else:
            opening.server_says(said.payload)
        if self._held_bytes + opening.held_bytes - before > HELD_LIMIT_BYTES:
            opening.give_up()

    def _hear_quic(self, flow: _Flow, heading: Heading, data: bytes) -> None:
        """Whom a client asks for, where the file does not say it."""
        if self._cipher is None or heading.transport is not Transport.UDP or heading.destination.port != QUIC_PORT:
            return
        if flow.host is not None or flow.is_quic_settled:
            return
        if flow.quic is None:
            flow.quic = QuicOpening(self._cipher)
        before = flow.quic.held_bytes
        said = datagram(data)
        assert said is not None, "it has a heading"
        answer = flow.quic.fed(said)
        if isinstance(answer, NeedMore) and self._held_bytes + flow.quic.held_bytes - before <= HELD_LIMIT_BYTES:
            return
        flow.quic, flow.is_quic_settled = None, True
        if isinstance(answer, ClientHello):
            flow.host = answer.sni

    def _read_comments(self, flow: _Flow, packet: CapturedPacket) -> None:
        for comment in packet.comments:
            if self._said_chars + len(comment) <= SAID_LIMIT_CHARS:
                process, said = told(comment)
                flow.process = flow.process or process
                flow.said.update(said)
                flow.said_chars += len(comment)
                self._said_chars += len(comment)
        if flow.process is None and packet.process is not None:
            flow.process = _named(packet.process)

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
        claimed_exe=pairs.pop("claimed path", None),
        unit=pairs.pop("unit", None),
        container=pairs.pop("container", None),
        services=tuple(filter(None, pairs.pop("services", "").split(", "))),
        package=pairs.pop("package", None),
        signer=pairs.pop("signer", None),
        parent=_parent(parent) if parent else None,
        source=found_by[1] if found_by else SOURCE,
        confidence=Confidence(found_by[2]) if found_by else Confidence.UNKNOWN,
    )
    return process, pairs


def _parent(match: re.Match[str]) -> ParentProcess:
    return ParentProcess(pid=int(match[2]), exe=None if match[1] == "unknown" else match[1])
