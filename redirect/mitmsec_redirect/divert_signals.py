"""What the divert engine is told (events) and what it orders (commands). Values only; `windivert` acts."""

from __future__ import annotations

from enum import StrEnum

from mitmsec.core.model import Confidence, Endpoint, OnFailure, Process, Transport, Value


class Choice(StrEnum):
    """What happens to a connection of a process, asked once, at its SYN."""

    DENY = "deny"  # refused: the program's connect() fails at once
    DIVERT = "divert"  # to the gate; UDP is refused, so that QUIC clients fall back to TCP
    LEAVE = "leave"  # it goes its way, and nothing of it is looked at again


class Which(StrEnum):
    """The handles whose queues can overflow."""

    DATA = "data"
    EVENTS = "events"
    SYNS = "syns"


class Flow(Value, frozen=True, array_like=True):
    """A connection as its program sees it."""

    transport: Transport
    local: Endpoint
    remote: Endpoint


class Terms(Value, frozen=True):
    """Whose packets the data handle takes: these flows', all to these remotes, or all of TCP."""

    flows: frozenset[Flow] = frozenset()
    remotes: frozenset[Endpoint] = frozenset()
    everything: bool = False

    def cover(self, flow: Flow) -> bool:
        return self.everything or flow.remote in self.remotes or flow in self.flows


# --- events -----------------------------------------------------------------------------------------------------------
class Event(Value, frozen=True):
    """Base of what the engine is told."""


class SocketConnected(Event, frozen=True):
    """The system saw `pid` call connect(), or send its first datagram."""

    transport: Transport
    pid: int
    connected_ns: int
    cookie: int | None = None  # Linux: of the socket, the exact key
    local: Endpoint | None = None  # Windows: this and the remote are the only key there is
    remote: Endpoint | None = None


class SynHeld(Event, frozen=True):
    """A first packet is in our hands: a SYN, or the first of a QUIC connection."""

    number: int  # ours, never used again
    flow: Flow
    sequence: int = 0  # of the SYN: another one is another connection
    cookie: int | None = None  # None: the system cannot tell, or the socket has gone
    fault: str = ""  # why the system could not be asked whose it is: then nobody may be refused for it


class TableTold(Event, frozen=True):
    """The answer to `AskTable`."""

    number: int
    pid: int | None
    confidence: Confidence = Confidence.TABLE  # that the pid is still that of who has the socket
    connected_ns: int | None = None  # or earlier: its socket was made then; None: the table does not tell
    fault: str = ""  # why it could not be read


class OwnerTold(Event, frozen=True):
    """The answer to `AskOwner`. `fault` says why nobody could choose."""

    number: int
    process: Process
    choice: Choice
    fault: str = ""


class Expected(Event, frozen=True):
    """The answer to `Expect`: the gate knows the flow. `fault` says why it does not."""

    number: int
    fault: str = ""


class FilterReady(Event, frozen=True):
    """The answer to `SetFilter`: the data handle takes these terms' packets now. `fault` says why it does not."""

    generation: int
    fault: str = ""


class FlowClosed(Event, frozen=True):
    """Both sides of a diverted flow have ended, or it was silent for very long."""

    flow: Flow
    sequence: int


class Overflowed(Event, frozen=True):
    """So many packets or events were lost in a queue; `passed`: they went out undiverted."""

    which: Which
    count: int
    passed: bool


class Tick(Event, frozen=True):
    """Time has passed. To be told every few milliseconds while something is held, else about once a second."""


type AnyEvent = (
    SocketConnected | SynHeld | TableTold | OwnerTold | Expected | FilterReady | FlowClosed | Overflowed | Tick
)


# --- commands ---------------------------------------------------------------------------------------------------------
class Command(Value, frozen=True):
    """Base of what the engine orders."""


class AskTable(Command, frozen=True):
    """Look the flow up in the system's table of sockets."""

    number: int
    flow: Flow


class AskOwner(Command, frozen=True):
    """Read the process now, while the kernel still waits with its connect(), and choose."""

    number: int
    flow: Flow
    pid: int
    connected_ns: int | None  # None: that is not known
    confidence: Confidence  # in the pid: KERNEL from an event, else what the table said of it


class SetFilter(Command, frozen=True):
    """Give the data handle these terms without losing a packet."""

    generation: int
    terms: Terms


class Expect(Command, frozen=True):
    """Translate the flow's packets from now on, and tell the gate where it was meant to go and whose it is."""

    number: int
    flow: Flow
    sequence: int
    process: Process
    connected_ns: int | None


class Forget(Command, frozen=True):
    """Translate the flow's packets no longer: its ports are used anew."""

    flow: Flow


class ReleaseSyn(Command, frozen=True):
    """Let it go, to the gate or where it was meant to go."""

    number: int
    diverted: bool


class RefuseSyn(Command, frozen=True):
    """Answer it with a refusal in the name of the remote."""

    number: int


class DropSyn(Command, frozen=True):
    """Nobody waits for it any more."""

    number: int


class CutUnseen(Command, frozen=True):
    """Find the connections of selected processes that no SYN announced, among these sockets, and end them."""

    connected: dict[int, int]  # cookie → pid of who called connect(), Linux only


class Report(Command, frozen=True):
    """Report a fault; equal ones may be added up."""

    what: str
    failed: OnFailure
    detail: str = ""


type AnyCommand = (
    AskTable | AskOwner | SetFilter | Expect | Forget | ReleaseSyn | RefuseSyn | DropSyn | CutUnseen | Report
)
