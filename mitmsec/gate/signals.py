"""What a flow is told (events) and what it orders (commands). Values only; `flow` thinks, `connection` acts."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from mitmsec.audit.event import Outcome, Seen
from mitmsec.core.messages import FlowEnded, HandOver, Upgrading
from mitmsec.core.model import Caller, Endpoint, OnFailure, Process, Value


class Origin(Value, frozen=True):
    """Where a diverted connection was going, and what the kernel recorded about whoever asked for it."""

    remote: Endpoint
    pid: int  # 0: not recorded
    uid: int  # -1: not recorded
    comm: str
    bound: str | None = None  # the address that the program had bound its socket to, if it had
    connected_ns: int = 0  # CLOCK_MONOTONIC of its connect()
    source: str | None = None  # the address that the program sees as its own, where the hook knows it
    client: Endpoint | None = None  # the connection's other end, where by that alone its owner is to be found
    caller: Caller | None = None  # which process of that pid, and which program, where the hook knows it
    selected: bool = False  # the kernel knew at connect() that the service selects it
    told: Process | None = None  # as it was read before the connection began, where the backend does that


class DialFailure(StrEnum):
    """Why no origin could be reached; each becomes an outcome of its own."""

    FAULT = "fault"  # ours: out of descriptors, for example
    REFUSED = "refused"
    RESET = "reset"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"


class Ending(StrEnum):
    """How a relay came to its end."""

    CLIENT_RESET = "client_reset"
    ORDERLY = "orderly"  # both sides have said that they are done
    ORIGIN_RESET = "origin_reset"
    UNRECORDED = "unrecorded"  # the recorder is gone, and what it cannot record must not pass


# --- events -----------------------------------------------------------------------------------------------------------
class Event(msgspec.Struct, frozen=True):
    """Base of what a flow is told."""


class Accepted(Event, frozen=True):
    """First of all. `origin` is None if no hook of ours diverted this connection."""

    client: Endpoint
    gate: Endpoint
    origin: Origin | None
    at_s: float  # by the clock on the wall, Unix seconds: the moment as of which it is decided


class OwnerKnown(Event, frozen=True):
    """The answer to `Ask`. Not `selected`: it was diverted before anybody knew that it should not be."""

    process: Process
    selected: bool = True


class FirstBytes(Event, frozen=True):
    """The answer to `Peek`: everything that lies unread so far. `eof`: no more will come."""

    data: bytes
    eof: bool = False


class ClientGone(Event, frozen=True):
    """The client has reset the connection while it was being peeked."""


class Deadline(Event, frozen=True):
    """The time of the last `SetDeadline` is over."""


class Dialled(Event, frozen=True):
    """`remote` is connected: one of those that `Dial` named."""

    remote: Endpoint


class DialFailed(Event, frozen=True):
    """None of those that `Dial` named can be reached; why the first of them could not."""

    failure: DialFailure


class ServerSpoke(Event, frozen=True):
    """The answer to `WatchServer`: the origin spoke (or ended: no data) before the client's first bytes were known."""

    data: bytes = b""  # unread, like the client's


class ServerGone(Event, frozen=True):
    """The origin has reset the connection while it was being watched."""


class Staffed(Event, frozen=True):
    """The answer to `Staff`: this worker takes the flow."""

    worker: int


class Unstaffed(Event, frozen=True):
    """The other answer to `Staff`: no worker lives. `Staffed` follows if one comes up."""


class Proved(Event, frozen=True):
    """The answer to `Prove`."""

    holds: bool


class WorkerSaid(Event, frozen=True):
    """The worker that has the flow is done with it."""

    ended: FlowEnded


class WorkerUpgrades(Event, frozen=True):
    """The worker that has the flow has relayed a dialogue up to TLS, and let go of both sockets."""

    upgrading: Upgrading


class WorkerDied(Event, frozen=True):
    """The worker that had the flow is gone."""


class ClientLeft(Event, frozen=True):
    """The answer to `WatchClient`. So many bytes have passed on the client's leg, both ways, up to now."""

    moved_bytes: int


class RelayEnded(Event, frozen=True):
    """Both directions of a relay have ended. Counts are bytes on the client's leg."""

    ending: Ending
    sent: int
    received: int


class LongLived(Event, frozen=True):
    """The flow has lived long and should be on record. Counts so far."""

    sent: int
    received: int


class Cut(Event, frozen=True):
    """The flow has to end now, for a reason that is not its own."""

    why: str
    outcome: Outcome = Outcome.CUT


class Faulted(Event, frozen=True):
    """Our own code failed while it handled this flow."""

    detail: str


type AnyEvent = (
    Accepted
    | OwnerKnown
    | FirstBytes
    | ClientGone
    | Deadline
    | Dialled
    | DialFailed
    | ServerSpoke
    | ServerGone
    | Staffed
    | Unstaffed
    | Proved
    | WorkerSaid
    | WorkerUpgrades
    | WorkerDied
    | ClientLeft
    | RelayEnded
    | LongLived
    | Cut
    | Faulted
)


# --- commands ---------------------------------------------------------------------------------------------------------
class Command(msgspec.Struct, frozen=True):
    """Base of what a flow orders."""


class Ask(Command, frozen=True):
    """Ask the supervisor whose connection this is."""

    origin: Origin


class Peek(Command, frozen=True):
    """Say `FirstBytes` once at least so many bytes lie unread, or once no more can come."""

    at_least_bytes: int


class SetDeadline(Command, frozen=True):
    """Say `Deadline` in so many seconds, None: never. There is one deadline; a new one replaces it."""

    after_s: float | None


class Dial(Command, frozen=True):
    """Connect to the first of these that answers (RFC 8305); added to those that are already being tried."""

    endpoints: tuple[Endpoint, ...]


class Undial(Command, frozen=True):
    """Nothing is to be said to the origin: what is being dialled, or connected, ends."""


class Prove(Command, frozen=True):
    """Say `Proved`: whether `remote` has a certificate for `name`."""

    name: str
    remote: Endpoint


class WatchServer(Command, frozen=True):
    """Say `ServerSpoke` when the connected origin has said so much, or has ended."""

    at_least_bytes: int = 1


class Relay(Command, frozen=True):
    """Stop peeking and carry bytes both ways; with `tee`, the recorder gets a copy."""

    tee: bool


class Staff(Command, frozen=True):
    """Find a worker; `preferred` if it can take more, -1: any."""

    preferred: int = -1


class Mint(Command, frozen=True):
    """Tell the signer that this flow is to be decrypted under exactly `name`."""

    name: str


class Hand(Command, frozen=True):
    """Give both sockets to `worker`; of a flow that is blocked, the client's alone."""

    worker: int
    order: HandOver


class TakeBack(Command, frozen=True):
    """Both sockets are ours again, and no worker's."""


class WatchClient(Command, frozen=True):
    """Say `ClientLeft` when the client, whom a worker has, has ended its side: at once if it already has."""


class Page(Command, frozen=True):
    """Answer the client's HTTP request with a refusal, then close."""

    rule: str
    reason: str


class Reset(Command, frozen=True):
    """End both legs with RST."""


class Close(Command, frozen=True):
    """End both legs in order."""


class Record(Command, frozen=True):
    """Report to the recorder."""

    seen: Seen


class Report(Command, frozen=True):
    """Report a fault; equal ones may be added up."""

    what: str
    failed: OnFailure | None = None
    detail: str = ""


type AnyCommand = (
    Ask
    | Peek
    | SetDeadline
    | Dial
    | Undial
    | Prove
    | WatchServer
    | Relay
    | Staff
    | Mint
    | Hand
    | TakeBack
    | WatchClient
    | Page
    | Reset
    | Close
    | Record
    | Report
)
