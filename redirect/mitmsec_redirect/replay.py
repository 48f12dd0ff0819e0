"""The redirect backend without a kernel: what programs try comes from a list, or from a capture.

    pcapng ── Reader ──► RecordedFlows ──► attempts ─┐
    a list ──────────────────────────────────────────┴─► Replay.play ──┬─► diverted: the gate asks `find`
                                                                       ├─► missed:   with reason, as on_failure says
                                                                       └─► passed:   not for a gate at all

For tests, demonstrations, and asking what another policy would have done. The ladder is the one of the connect hook
(mitmsec_redirect.programs), as far as it can be told from what was recorded. No clock runs here: `stall` and `beat` are
what the caller says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address

from mitmsec.core.model import Endpoint, OnFailure, Process, Quic, Transport, Value
from mitmsec.core.quic_packets import Cipher
from mitmsec_redirect.backend import Backend, BackendFault, BackendKind, GateGround, Watched
from mitmsec_redirect.pcapng_blocks import Reader
from mitmsec_redirect.recorded_flows import RecordedFlow, RecordedFlows
from mitmsec_redirect.records import Missed, Reason

QUIC_PORT = 443
UNKNOWN_UID = -1


class CaptureUnreadable(ValueError):
    """The bytes are not the whole of a pcapng file; what was read before this point has been given."""


class Attempt(Value, frozen=True):
    """A program wants a connection, or sends its first datagram somewhere."""

    transport: Transport
    local: Endpoint
    remote: Endpoint
    process: Process
    at_ns: int = 0
    host: str | None = None


class Diverted(Value, frozen=True):
    """The gate gets it, and `Replay.find` knows it by its local side."""

    attempt: Attempt


class Passed(Value, frozen=True):
    """It goes its own way, as everything that is neither TCP nor refused QUIC, and all once the replay is detached."""

    attempt: Attempt


class Replay(Backend):
    """A script of attempts as a backend ."""

    kind = BackendKind.REPLAY

    def __init__(
        self,
        attempts: Iterable[Attempt],
        *,
        port_v4: int,
        port_v6: int | None,
        on_failure: OnFailure,
        quic: Quic,
    ) -> None:
        self._script = iter(attempts)
        self._on_failure, self._quic = on_failure, quic
        self._listeners: frozenset[Endpoint] = frozenset()
        self._has_v6 = False
        self._waiting: dict[Endpoint, Attempt] = {}
        self._missed: deque[Missed] = deque()
        self._diverted = 0
        self._is_stalled = self._is_detached = False
        self.set_port(port_v4, port_v6)

    # -- the script ----------------------------------------------------------------------------------------------------
    def play(self) -> Diverted | Missed | Passed | None:
        """Carry out the next attempt; None: there is none left. Raises what the script raises."""
        attempt = next(self._script, None)
        if attempt is None:
            return None
        reason = self._reason(attempt)
        if reason is not None:
            missed = self._miss(attempt, reason)
            self._missed.append(missed)
            return missed
        if self._is_detached or attempt.transport is Transport.UDP:
            return Passed(attempt)
        self._diverted += 1
        self._waiting[attempt.local] = attempt
        return Diverted(attempt)

    def _reason(self, attempt: Attempt) -> Reason | None:
        """Why it is not diverted; None: it is, or it is nothing to be diverted."""
        if self._is_detached:
            return None
        if attempt.transport is Transport.UDP:
            is_refused = attempt.remote.port == QUIC_PORT and self._quic.unled is Quic.REFUSE
            return Reason.QUIC_REFUSED if is_refused else None
        remote = ip_address(attempt.remote.address)
        if remote.version == 6 and remote.is_link_local:
            return Reason.LINK_LOCAL
        if attempt.remote in self._listeners:
            return Reason.OWN_LISTENER
        if self._is_stalled:
            return Reason.GATE_STALLED
        return Reason.NO_IPV6_LISTENER if remote.version == 6 and not self._has_v6 else None

    def _miss(self, attempt: Attempt, reason: Reason) -> Missed:
        always = reason in (Reason.OWN_LISTENER, Reason.QUIC_REFUSED)
        return Missed(
            reason=reason,
            transport=attempt.transport,
            remote=attempt.remote,
            pid=attempt.process.pid,
            uid=UNKNOWN_UID,
            comm=attempt.process.name or "",
            at_ns=attempt.at_ns,
            netns=0,
            denied=always or self._on_failure is OnFailure.CLOSED,
            confidence=attempt.process.confidence,
        )

    # -- for the gate --------------------------------------------------------------------------------------------------
    @property
    def ground(self) -> GateGround:
        """No descriptors: a gate that takes a replay lives in the same process."""
        return GateGround(kind=self.kind)

    def find(self, client: Endpoint) -> Attempt | None:
        """The attempt whose local side this is, once; None: no attempt of the script came from there."""
        return self._waiting.pop(client, None)

    def beat(self) -> None:
        """The gate lives again."""
        self._is_stalled = False

    # -- as every backend ----------------------------------------------------------------------------------------------
    @property
    def watched(self) -> tuple[Watched, ...]:
        """Nothing happens here but by `play`."""
        return ()

    @property
    def last_beat_ns(self) -> int:
        """No clock runs here: the caller says whether the gate lives."""
        return 0

    def set_port(self, port_v4: int, port_v6: int | None) -> None:
        """Other listeners from now on."""
        self._has_v6 = port_v6 is not None
        self._listeners = frozenset(
            {Endpoint(address="127.0.0.1", port=port_v4)}
            | ({Endpoint(address="::1", port=port_v6)} if port_v6 is not None else set())
        )
        self.beat()

    def stall(self) -> None:
        """Follow `on_failure` until the next beat."""
        self._is_stalled = True

    def owner(self, client: Endpoint, origin: Endpoint) -> None:
        """The attempt has said who it is."""

    @property
    def missed_fd(self) -> None:
        """There is nothing to wait for."""

    def missed(self) -> list[Missed]:
        """What was not diverted since the last call, oldest first."""
        found = list(self._missed)
        self._missed.clear()
        return found

    def lost(self) -> Mapping[Reason, int]:
        """What `missed` has not told yet: nothing is ever dropped."""
        counts: dict[Reason, int] = {}
        for one in self._missed:
            counts[one.reason] = counts.get(one.reason, 0) + 1
        return counts

    def troubles(self) -> tuple[BackendFault, ...]:
        """There is nothing that could go wrong."""
        return ()

    @property
    def diverted(self) -> int:
        """Attempts sent to the gate so far."""
        return self._diverted

    def detach(self) -> None:
        """What is played from now on passes."""
        self._is_detached = True

    def close(self) -> None:
        """Forget what nobody asked for. Idempotent."""
        self.detach()
        self._waiting.clear()


def flows_of(pieces: Iterable[bytes], cipher: Cipher | None = None) -> Iterator[RecordedFlow]:
    """The flows of a pcapng file that comes in pieces, `cipher` as of `RecordedFlows`.

    Raises CaptureUnreadable after those that could be read.
    """
    reader, flows = Reader(), RecordedFlows(cipher)
    for piece in pieces:
        yield from flows.add(reader.feed(piece))
        if reader.malformed is not None:
            break
    yield from flows.end()
    if reader.malformed is not None:
        raise CaptureUnreadable(f"not pcapng from byte {reader.malformed.at} on: {reader.malformed.why}")
    if reader.is_inside_block:
        raise CaptureUnreadable("the file ends inside a block")


def attempts_of(flows: Iterable[RecordedFlow]) -> list[Attempt]:
    """What the programs of this machine tried, in the order of time. What came in from outside they did not try."""
    tried = [
        Attempt(flow.transport, flow.local, flow.remote, flow.process, at_ns=flow.first_ns, host=flow.host)
        for flow in flows
        if flow.outbound
    ]
    return sorted(tried, key=lambda attempt: attempt.at_ns)
