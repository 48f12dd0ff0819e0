"""The scanner's composition root: YARA's rules, compiled, and what workers want scanned by them. Nothing else.

    worker ── ScanContent* ──► gathered, one content for each worker ──► ready, in the order in which they are complete
                                                                            └─► ScanBegun, scan, ScanAnswer ──► worker

yara-x holds the interpreter while it scans, so nothing is read meanwhile; a scan is ended after SCAN_LIMIT_S, and a
scanner that hangs by the supervisor. A worker has one content under way, so workers take turns. Where some are still
sending, they are read between two scans for as long as the last one took, up to READ_S: else much that is cheap to scan
would never arrive beside little that takes long. Content is hostile and
what reads it is large: no key is here, no network, no file, and no program or process can be started.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from mitmsec.channel import Channel, ChannelFull, close_all
from mitmsec.core.messages import Fault, Message, ProducerUp, Role
from mitmsec.core.policy_packing import prepared_in, without_names
from mitmsec.core.rule_hits import Hits
from mitmsec.service import child
from mitmsec.service.scanner_messages import ScanAnswer, ScanBegun, ScanContent, ScannerSettings
from mitmsec_addons.yara import PART_LIMIT_BYTES, Yara
from mitmsec_addons.yara_rules import RuleSet

PANICKED = 101  # the status, as Rust has it
BURST = 4  # pieces of one worker before others have their turn
READ_S = 0.02


class Gathering:
    """One worker's content, as its pieces come. What does not fit together is not gathered."""

    def __init__(self, limit_bytes: int = PART_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._number: int | None = None
        self._content = bytearray()

    @property
    def is_open(self) -> bool:
        """It has begun, and is not complete."""
        return self._number is not None

    def take(self, piece: ScanContent) -> tuple[int, bytes] | None:
        """Number and content, where it is complete. One that is too long is forgotten."""
        if piece.begins:
            self._forget()
            self._number = piece.number
        if piece.number != self._number:
            return None  # of one whose beginning another scanner has had
        self._content += piece.data
        if len(self._content) > self._limit_bytes:
            self._forget()
            return None
        if not piece.ends:
            return None
        content = bytes(self._content)
        self._forget()
        return piece.number, content

    def _forget(self) -> None:
        self._number, self._content = None, bytearray()


class Scanner:
    """Program of the scanner process."""

    def __init__(self, control: Channel, load: Callable[[bytes], RuleSet] = RuleSet) -> None:
        self._load = load
        self._rules: RuleSet | None = None
        self._workers: dict[Channel, Gathering] = {}
        self._ready: dict[Channel, tuple[int, bytes]] = {}
        self._turn: asyncio.Handle | None = None
        self._reads_until_s = 0.0  # on the loop's clock

    async def start(self, settings: ScannerSettings, fds: list[int]) -> Message | None:
        """Load the rules, and start yara-x's own thread now."""
        try:
            content = os.pread(fds[0], os.fstat(fds[0]).st_size, 0)
        finally:
            close_all(fds)
        compiled = prepared_in(content, without_names(content)).get(Yara.name)
        if compiled is None:
            return Fault(what="scanner_settings", detail="the policy has no rules behind it")
        self._rules = self._load(compiled)
        self._rules.scan(b"")
        return None

    def told(self, message: ProducerUp, fds: list[int]) -> None:
        """A worker to listen to."""
        if message.role is not Role.WORKER or len(fds) != 1:
            return close_all(fds)
        channel, gathering = Channel(socket.socket(fileno=fds[0]), [ScanContent]), Gathering()
        self._workers[channel] = gathering
        channel.attach(
            asyncio.get_running_loop(),
            lambda piece, more: self._sent(channel, gathering, piece, more),
            lambda: self._let_go(channel),
            burst=BURST,
        )

    def _sent(self, channel: Channel, gathering: Gathering, piece: ScanContent, fds: list[int]) -> None:
        close_all(fds)
        complete = gathering.take(piece)
        if complete is not None:
            self._ready[channel] = complete  # one that waits still is not waited for any more
            self._go_on()

    def _go_on(self) -> None:
        """After what else there is to read; again, where there is no more."""
        if not self._ready:
            return
        if self._turn is not None:
            self._turn.cancel()
        loop, is_read = asyncio.get_running_loop(), any(one.is_open for one in self._workers.values())
        self._turn = loop.call_at(self._reads_until_s, self._scan) if is_read else loop.call_soon(self._scan)

    def _scan(self) -> None:
        """The one that has waited for longest."""
        self._turn = None
        channel = next(iter(self._ready), None)
        if channel is None or self._rules is None:
            return
        number, content = self._ready.pop(channel)
        clock = asyncio.get_running_loop().time
        begun_s = clock()
        self._say(channel, ScanBegun(number=number))
        self._say(channel, ScanAnswer(number=number, hits=self._hits(self._rules, content)))
        ended_s = clock()
        self._reads_until_s = ended_s + min(READ_S, ended_s - begun_s)
        self._go_on()

    def _hits(self, rules: RuleSet, content: bytes) -> Hits:
        try:
            return rules.scan(content)
        except Exception as error:  # a bug of ours must not leave the worker without an answer
            return Hits(error=f"the scanner failed ({type(error).__name__})")
        except BaseException:  # a panic of yara-x, after which nobody knows what it would say; the loop would go on
            os._exit(PANICKED)

    def _say(self, channel: Channel, message: Message) -> None:
        try:
            channel.send(message)
        except (ChannelFull, OSError):  # it asks and never reads
            self._let_go(channel)

    def _let_go(self, channel: Channel) -> None:
        channel.close()
        self._workers.pop(channel, None)
        self._ready.pop(channel, None)

    async def stop(self) -> None:
        """Nobody waits for what is still to be scanned."""
        for channel in [*self._workers]:
            self._let_go(channel)


def main() -> None:
    """Serve on the control channel whose descriptor is the first argument."""
    child.main([ScannerSettings, ProducerUp], Scanner)
