"""One capture file, written while the flows in it live.

    open_flow ─┐
    data ──────┼──► Conversation ──► blocks ──► pending ──► file
    end_flow ──┘       (packets)                   ▲
    secrets ───────────────────────────────────────┘ at its front

Blocks wait in memory until the oldest is half a second old or there are 256 KiB. That is cheap to write, loses little
when the recorder is killed, and gives key log lines that come a moment late a place *before* the packets that they
decrypt: readers go through a file once and decrypt with what they have read so far. Time is what the callers say it is;
the recorder calls `tick` when nothing else happens.

Producers race: the gate may say that a flow has ended before the worker's last bytes are read from another socket. So
an ended flow lingers for a second of capture time and still takes data; its closing packets come after that, or before
the next flow between the same ports.

What a pipe has no room for waits as well: the writer never does. A reader that leaves BACKLOG_BYTES waiting, or takes
nothing for PATIENCE_NS, does not keep up.

What stands in the file is always whole blocks. When a write fails (no space left, reader of a pipe gone or not keeping
up) the file is cut back to its last whole block, `CaptureFailed` is raised, and from then on by every call.
"""

from __future__ import annotations

from collections import deque
from typing import BinaryIO, NoReturn

import msgspec

from mitmsec.capture import comment as comments
from mitmsec.capture import pcapng
from mitmsec.capture.segments import Conversation, Packet
from mitmsec.core.model import Endpoint, Process

FLUSH_BYTES = 256 * 1024
FLUSH_NS = 500_000_000
LINGER_NS = 1_000_000_000
BACKLOG_BYTES = 16 << 20
PATIENCE_NS = 5_000_000_000
DROPPED_LIMIT = 2**63  # the block has room for no more than twice that
_SPREAD = 0x9E3779B1  # odd, so that n * _SPREAD modulo 2**32 repeats only after 2**32 flows


class CaptureFailed(Exception):
    """The capture file could not be written; the message says why and what state it was left in."""


class _Flow(msgspec.Struct):
    """A flow that is in the file."""

    ends: tuple[Endpoint, Endpoint]
    conversation: Conversation
    process: int  # number of its process event block
    short: str
    last_ns: int
    ended_ns: int | None = None
    reset: bool = False
    said: str = ""  # the caller's last words on it


class CaptureWriter:
    """Writes pcapng to `file`, which it owns from now on, beginning at its current position.

    `command` is shown as the interface's description. `file` may be buffered or raw, a regular file or a pipe; a
    pipe should not block, so that a slow reader is at worst a `CaptureFailed`, never a stall.
    Every method may raise CaptureFailed. Not thread-safe.
    """

    def __init__(self, file: BinaryIO, *, command: str = "", application: str = "mitmsec", system: str = "") -> None:
        file.flush()
        self._file = file
        # A buffered file would keep what it could not write and try again at close, behind our back.
        self._raw = getattr(file, "raw", file)
        self._whole_bytes = file.tell() if file.seekable() else 0
        self._chunks: deque[tuple[list[int], bytes]] = deque()  # flushed and not yet taken: sizes of the blocks, bytes
        self._taken_bytes = 0  # of the first chunk
        self._waiting_bytes = 0
        self._stalled_ns: int | None = None  # since when nothing is taken
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._secrets = 0  # how many blocks at the front of `_pending` are secrets
        self._flows: dict[str, _Flow] = {}
        self._ended: deque[tuple[str, int]] = deque()  # flows that linger, and since when
        self._between: dict[tuple[Endpoint, Endpoint], str] = {}  # the latest flow between two endpoints
        self._processes: dict[tuple[int, str], int] = {}
        self._opened = self._packets = self._dropped = 0
        self._start_ns = self._last_ns = 0
        self._pending_since_ns: int | None = None
        self._failure = ""
        self._finished = self._closed = False
        self._put(pcapng.section_header(application=application, system=system))
        self._put(pcapng.interface_description(name="mitmsec", description=command))
        self.flush()

    # -- what is seen --------------------------------------------------------------------------------------------------
    def open_flow(
        self,
        flow: str,
        process: Process,
        local: Endpoint,
        remote: Endpoint,
        time_ns: int,
        comment: str = "",
        *,
        host: str | None = None,
    ) -> None:
        """The handshake of `flow`. `comment` adds lines to what is said of `process`; `host` names `remote`.

        A flow that is open already stays as it is. Raises ValueError for an endpoint that is no address.
        """
        if flow in self._flows:
            return
        number = self._opened * _SPREAD & 0xFFFFFFFF  # readers tell flows on the same ports apart by it
        conversation = Conversation(local, remote, first_sent=number, first_received=number ^ 0x5555_5555)
        self._opened += 1
        if (before := self._between.get((local, remote))) is not None:
            self._finish(before, time_ns)  # the ports are used again, so it is over
        self._between[local, remote] = flow
        if host:
            self._put(pcapng.name_resolution([(Endpoint.of(remote.address, 0).address, host)]))
        number_of_process, short = self._process(process), comments.short(process)
        known = _Flow((local, remote), conversation, number_of_process, short, time_ns)
        self._flows[flow] = known
        self._packets_of(known, conversation.opened(), time_ns, comments.full(process, comment))
        self.tick(time_ns)

    def data(self, flow: str, sent: bool, data: bytes, time_ns: int) -> None:
        """Bytes of `flow` in the order of their direction. Bytes of a flow that is not open count as dropped."""
        known = self._flows.get(flow)
        if known is None:
            self._dropped += 1
        else:
            known.last_ns = max(known.last_ns, time_ns)
            for packet in known.conversation.carried(sent=sent, data=data):
                self._packets_of(known, [packet], time_ns, known.short if packet.sent is sent else "")
        self.tick(time_ns)

    def end_flow(self, flow: str, time_ns: int, *, reset: bool = False, comment: str = "") -> None:
        """`flow` has ended, by a reset if `reset`; `comment` goes with the closing packet. Unknown ones are ignored."""
        known = self._flows.get(flow)
        if known is not None and known.ended_ns is None:
            known.ended_ns, known.reset, known.said = time_ns, reset, comment
            self._ended.append((flow, time_ns))
        self.tick(time_ns)

    def secrets(self, lines: bytes) -> None:
        """NSS key log lines. Malformed ones are left out."""
        for block in pcapng.secrets(lines):
            self._pending.insert(self._secrets, block)
            self._pending_bytes += len(block)
            self._secrets += 1
        self._check()

    def lost(self, pieces: int) -> None:
        """Count pieces of flows that never reached this writer; the file's statistics say so."""
        self._dropped = min(self._dropped + max(pieces, 0), DROPPED_LIMIT)

    # -- the file ------------------------------------------------------------------------------------------------------
    def tick(self, time_ns: int) -> None:
        """It is `time_ns` (since 1970): write what has waited long enough."""
        self._check()
        self._start_ns = self._start_ns or time_ns
        self._last_ns = max(self._last_ns, time_ns)
        self._end_ripe(time_ns)
        self._write()
        if self._pending and self._pending_since_ns is None:
            self._pending_since_ns = time_ns
        since_ns = self._pending_since_ns
        if self._pending_bytes >= FLUSH_BYTES or (since_ns is not None and not _within(FLUSH_NS, since_ns, time_ns)):
            self.flush()

    def flush(self) -> None:
        """Everything so far is in the file, as far as the kernel has room for it."""
        self._check()
        blocks, self._pending = self._pending, []
        self._pending_bytes = self._secrets = 0
        self._pending_since_ns = None
        if blocks:
            data = b"".join(blocks)
            self._chunks.append(([len(block) for block in blocks], data))
            self._waiting_bytes += len(data)
        self._write()

    def _write(self) -> None:
        while self._chunks:
            data = self._chunks[0][1]
            try:
                # None: a descriptor that does not block and has no room. A buffered file never gets here.
                written = self._raw.write(memoryview(data)[self._taken_bytes :])
            except OSError as error:
                self._fail(error.strerror or str(error))
            if not written:
                return self._not_taken()
            self._stalled_ns = None
            self._taken_bytes += written
            self._waiting_bytes -= written
            if self._taken_bytes == len(data):
                self._chunks.popleft()
                self._whole_bytes += len(data)
                self._taken_bytes = 0

    def _not_taken(self) -> None:
        if self._stalled_ns is None:
            self._stalled_ns = self._last_ns
        if self._waiting_bytes > BACKLOG_BYTES or self._last_ns - self._stalled_ns > PATIENCE_NS:
            self._fail("the reader does not keep up")

    def finish(self) -> bool:
        """Nothing more comes. True once all of it is in the file; else ask again, after a `tick`."""
        if not self._finished:
            self._finished = True
            self._end_ripe(None)
            self._put(self._statistics())
            self.flush()
        return not self._chunks

    def close(self) -> None:
        """End what has ended, write the statistics, close the file. Flows that still live simply stop."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self._failure and not self.finish():
                self._fail("the reader does not keep up")
        finally:
            try:
                self._file.close()
            except OSError as error:
                self._failure = self._failure or f"capture file could not be closed: {error.strerror or error}"
                raise CaptureFailed(self._failure) from error

    def _end_ripe(self, now_ns: int | None) -> None:
        """The closing packets of flows that have lingered; with None, of all that ended."""
        while self._ended:
            flow, ended_ns = self._ended[0]
            if now_ns is not None and _within(LINGER_NS, ended_ns, now_ns):
                return
            self._ended.popleft()
            self._finish(flow, ended_ns)

    def _finish(self, flow: str, time_ns: int) -> None:
        """The closing packets of `flow`, at `time_ns` if nobody said when it ended. Then it is forgotten."""
        known = self._flows.pop(flow, None)
        if known is None:  # finished before, when its ports were used again
            return
        del self._between[known.ends]
        ended_ns = time_ns if known.ended_ns is None else known.ended_ns
        said = "\n".join(filter(None, (known.short, *map(comments.one_line, known.said.splitlines()))))
        packets = known.conversation.ended(reset=known.reset)
        self._packets_of(known, packets, max(ended_ns, known.last_ns), said)

    def _packets_of(self, flow: _Flow, packets: list[Packet], time_ns: int, comment: str) -> None:
        """`packets`, the first of them with `comment`."""
        for index, packet in enumerate(packets):
            self._packets += 1
            self._put(
                pcapng.enhanced_packet(
                    packet.data,
                    time_ns=time_ns,
                    outbound=packet.sent,
                    process=flow.process,
                    comments=(comment,) if index == 0 else (),
                )
            )

    def _process(self, process: Process) -> int:
        """The number of the process event block for `process`, which is written on first use."""
        name = process.name or (process.exe or "unknown").rpartition("/")[2]
        key = (process.pid, f"{process.started} {name}")
        if key not in self._processes:
            self._processes[key] = len(self._processes)
            self._put(pcapng.process_event(pid=process.pid, name=name))
        return self._processes[key]

    def _statistics(self) -> bytes:
        return pcapng.interface_statistics(
            time_ns=self._last_ns,
            start_ns=self._start_ns,
            end_ns=self._last_ns,
            received=self._packets,
            dropped=self._dropped,
        )

    def _put(self, block: bytes) -> None:
        self._pending.append(block)
        self._pending_bytes += len(block)

    def _check(self) -> None:
        if self._failure:
            self._pending.clear()
            raise CaptureFailed(self._failure)

    def _fail(self, why: str) -> NoReturn:
        """Cut the file back to the last block that is whole, and raise."""
        sizes, done = iter(self._chunks[0][0]), self._taken_bytes
        while done >= (size_bytes := next(sizes)):  # ends: not all of them were written
            done -= size_bytes
            self._whole_bytes += size_bytes
        state = "the file ends with its last whole block"
        if done:
            try:
                self._raw.truncate(self._whole_bytes)
            except OSError:
                state = "its last block is incomplete"
        self._chunks.clear()
        self._failure = f"capture stopped: {why}; {state}"
        raise CaptureFailed(self._failure)


def _within(span_ns: int, since_ns: int, now_ns: int) -> bool:
    """Is `now_ns` in the span that began at `since_ns`? A clock that was set back has left it."""
    return since_ns <= now_ns < since_ns + span_ns
