"""The flows of a pcapng file, as a policy can be asked about them: mitmsec's own captures, and those of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from mitmsec.audit.past_flows import FIRST_BYTES
from mitmsec.core.model import Action, Direction, Process, Transport
from mitmsec.core.past_flow import PastFlow, Verdict
from mitmsec.core.sniff import Malformed, Sniffed
from mitmsec_certs.packet_cipher import Aes128
from mitmsec_redirect.recorded_flows import RecordedFlow
from mitmsec_redirect.replay import flows_of

PIECE_BYTES = 1 << 20
CLASSIC_PCAP = frozenset(
    bytes.fromhex(magic) for magic in ("a1b2c3d4", "d4c3b2a1", "a1b23c4d", "4d3cb2a1")
)  # what tcpdump writes by itself


class NotPcapng(ValueError):
    """It is a capture of the older kind."""


def captured_flows(
    path: Path, program: Process | None, read: Callable[[int], None] = lambda count: None
) -> Iterator[tuple[RecordedFlow, PastFlow]]:
    """Each flow, and what is known of it. `program` is whose those are that the file names no process for.

    `read` is told how many bytes have been read. Raises OSError, NotPcapng, CaptureUnreadable.
    """
    for flow in flows_of(_pieces(path, read), Aes128()):
        yield flow, past(flow, program)


def past(flow: RecordedFlow, program: Process | None) -> PastFlow:
    """What is not in the file is unknown."""
    is_named = flow.process.exe is not None or flow.process.name is not None or flow.process.pid > 0
    is_udp = flow.transport is Transport.UDP
    found = PastFlow(
        process=flow.process if is_named or program is None else program,
        local=flow.local,
        remote=flow.remote,
        at_s=flow.first_ns / 1e9,
        transport=flow.transport,
        direction=Direction.OUTBOUND if flow.outbound else Direction.INBOUND,
    )
    match flow.shown:
        case Sniffed(protocol=protocol, name=name, hello=hello):
            named = replace(found, protocol=protocol, name=name)
            if hello is None:
                return named
            return replace(named, alpn=hello.alpn, ja4=hello.ja4, ech=hello.ech, is_tls=True)
        case Malformed():
            return replace(found, is_malformed=True)
        case None:
            return found if is_udp else replace(found, unknown=FIRST_BYTES)


def recorded(flow: RecordedFlow) -> Verdict | None:
    """What was made of it, where mitmsec captured it and its end is in the file."""
    action, rule = flow.said.get("action", ""), flow.said.get("rule")
    with suppress(ValueError):
        if rule is not None:
            return Verdict(action=Action(action), rule=rule, reason="as the capture says")
    return None


def _pieces(path: Path, read: Callable[[int], None]) -> Iterator[bytes]:
    with path.open("rb") as file:
        count, piece = 0, file.read(PIECE_BYTES)
        if piece[:4] in CLASSIC_PCAP:
            raise NotPcapng(f"{path} is a pcap file, of the older kind")
        while piece:
            yield piece
            count += len(piece)
            read(count)
            piece = file.read(PIECE_BYTES)
