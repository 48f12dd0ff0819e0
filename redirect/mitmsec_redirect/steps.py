"""The steps that the programs are made of; in which order, and what for, stands at the head of `programs`.

Each function appends instructions. A step that does not apply falls through to the next; one that decides jumps to
because(code), "pass", or, for names, "done". Registers in all steps: R6 the context, R7 the socket, R8 the port in
network order, R9 the namespace's flags and, once those are used, the gate's port; R0–R5 are lost at each call.

    stack, from the frame pointer:  0 ─ ATTEMPT ─ -144 ─ KEY ─ -152 ─ BEAT ─ -160 ─ ROUTE_KEY ─ -192 ─ VERDICT ─ -200
"""

from __future__ import annotations

from typing import Protocol

from mitmsec.core.model import OnFailure, Quic, Value
from mitmsec_redirect import records, run_steps
from mitmsec_redirect.assembler import Assembler, Condition, Helper, Register, Size
from mitmsec_redirect.path_records import PathMaps
from mitmsec_redirect.process_offsets import Offsets
from mitmsec_redirect.records import AttemptFlag, Code, port_field, word
from mitmsec_redirect.verdicts import Verdict

R0, R1, R2, R3, R4, R6, R7, R8, R9, R10 = (Register(number) for number in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10))

STALL_NS = 1_000_000_000
STORAGE_CREATE = 1  # BPF_SK_STORAGE_GET_F_CREATE

# struct bpf_sock_addr
FAMILY, ADDRESS_V4, ADDRESS_V6, USER_PORT, IP_PROTOCOL, SOCKET = 0, 4, 8, 24, 36, 64
# struct bpf_sock
BOUND_DEVICE, MARK, LOCAL_V4, LOCAL_V6, LOCAL_PORT = 0, 16, 24, 28, 44

# our stack, from the frame pointer
ATTEMPT = -144
KEY = -152  # cookie or index
BEAT = -160
ROUTE_KEY = -192
VERDICT = -200
REMOTE, SOURCE, FLAGS = ATTEMPT + records.REMOTE, ATTEMPT + records.SOURCE, ATTEMPT + records.FLAGS

AF_INET, AF_INET6 = 2, 10
MAPPED_WORD = word(b"\0\0\xff\xff")
LOOPBACK_V4 = word(bytes((127, 0, 0, 1)))
LOOPBACK_V6_END = word(b"\0\0\0\1")
PORT_443 = port_field(443)
ALWAYS_DENIED = frozenset({Code.OWN_LISTENER, Code.QUIC_REFUSED})


class Selection(Value, frozen=True):
    """A standing selection, over all cgroups. With `everything`, whoever has no verdict is selected too."""

    verdicts: int  # descriptor of the map of entries by process (mitmsec_redirect.verdicts)
    runs: int  # of the map of cgroups whose own hook diverts what is in them (mitmsec_redirect.runs)
    everything: bool


class Selecting(Protocol):
    """What is known of whom a hook is meant for."""

    @property
    def selection(self) -> Selection | None: ...


class Layout(Value, frozen=True):
    """Descriptors of the maps that the programs use, and what is fixed for a session."""

    origins: int
    truth: int
    missed: int
    counts: int
    namespaces: int
    routes: int
    heartbeat: int
    settings: int
    on_failure: OnFailure
    quic: Quic
    leads_quic: bool = False  # not with Quic.REFUSE: to the relay at the gate's port
    selection: Selection | None = None  # None: all that the cgroup holds
    offsets: Offsets | None = None  # None: the kernel's types are not known, and the caller is told by its pid alone
    paths: PathMaps | None = None  # None: where its executable lies is not noted


# --- the attempt, as far as it is known -------------------------------------------------------------------------------
def begin(asm: Assembler, *, v6: bool) -> None:
    asm.move(R6, R1)
    asm.load(R2, R6, FAMILY)
    asm.jump_if(R2, Condition.NOT_EQUAL, AF_INET6 if v6 else AF_INET, "pass")  # the kernel is about to refuse it itself
    asm.load(R7, R6, SOCKET, Size.LONG)
    asm.load(R8, R6, USER_PORT)


def unless_selected(asm: Assembler, layout: Selecting, label: str) -> None:
    """Under a standing selection on to `label` for whoever is not selected, after one look-up. Loses R9."""
    if (selection := layout.selection) is None:
        return
    asm.store(R10, VERDICT, 0, Size.LONG)
    asm.call(Helper.PID_TGID)
    asm.shift_right(R0, 32)
    asm.store(R10, KEY, R0)
    look_up(asm, selection.verdicts, KEY)
    asm.jump_if(R0, Condition.EQUAL, 0, "selected" if selection.everything else label)
    asm.load(R2, R0, 0)
    asm.store(R10, VERDICT, R2)
    asm.move(R3, R2)
    asm.mask(R3, Verdict.OWN_TRAFFIC)
    asm.jump_if(R3, Condition.NOT_EQUAL, 0, label)
    if selection.everything:
        asm.label("selected")
    else:
        asm.mask(R2, Verdict.SELECTED | Verdict.UNDECIDED)
        asm.jump_if(R2, Condition.EQUAL, 0, label)
    run_steps.unless_in_run(asm, selection.runs, KEY, label)


def unless_quic(asm: Assembler, label: str) -> None:
    asm.load(R2, R6, IP_PROTOCOL)
    asm.jump_if(R2, Condition.NOT_EQUAL, records.PROTOCOL_UDP, label)
    asm.jump_if(R8, Condition.NOT_EQUAL, PORT_443, label)


def describe(asm: Assembler, *, v6: bool) -> None:
    """Write all that is known into the attempt on the stack, the addresses in their canonical form."""
    addresses(asm, v6=v6)
    circumstances(asm)


def addresses(asm: Assembler, *, v6: bool) -> None:
    """The first part of `describe`: clears the attempt, calls no helper."""
    for offset in range(0, records.ATTEMPT.size, 8):
        asm.store(R10, ATTEMPT + offset, 0, Size.LONG)
    copy_address(asm, records.REMOTE, R6, ADDRESS_V6 if v6 else ADDRESS_V4, v6=v6)
    copy_address(asm, records.SOURCE, R7, LOCAL_V6 if v6 else LOCAL_V4, v6=v6)
    canonical(asm)


def circumstances(asm: Assembler) -> None:
    """The second part: ports, protocol, and who, when and where."""
    asm.store(R10, ATTEMPT + records.PORT, R8, Size.HALF)
    asm.load(R2, R6, IP_PROTOCOL)
    asm.store(R10, ATTEMPT + records.PROTOCOL, R2, Size.HALF)
    asm.load(R2, R7, LOCAL_PORT)
    asm.store(R10, ATTEMPT + records.SOURCE_PORT, R2, Size.HALF)
    asm.call(Helper.PID_TGID)
    asm.shift_right(R0, 32)
    asm.store(R10, ATTEMPT + records.PID, R0)
    asm.call(Helper.UID_GID)
    asm.store(R10, ATTEMPT + records.UID, R0)
    asm.point(R1, ATTEMPT + records.COMM)
    asm.move(R2, 16)
    asm.call(Helper.COMM)
    asm.call(Helper.KTIME_NS)
    asm.store(R10, ATTEMPT + records.TIME, R0, Size.LONG)
    asm.move(R1, R6)
    asm.call(Helper.NETNS_COOKIE)
    asm.store(R10, ATTEMPT + records.NAMESPACE, R0, Size.LONG)


def copy_address(asm: Assembler, field: int, base: Register, offset: int, *, v6: bool) -> None:
    if v6:
        for index in range(0, 16, 4):
            asm.load(R2, base, offset + index)
            asm.store(R10, ATTEMPT + field + index, R2)
    else:
        asm.store(R10, ATTEMPT + field + 8, MAPPED_WORD)
        asm.load(R2, base, offset)
        asm.store(R10, ATTEMPT + field + 12, R2)


def canonical(asm: Assembler) -> None:
    """A wildcard destination means this machine, as in the kernel's ip_route_output_key and tcp_v6_connect.

    Afterwards the source is zero, or is what the program bound and AttemptFlag.BOUND is set.
    """
    asm.load(R2, R10, REMOTE, Size.LONG)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, "remote_v6")
    asm.load(R2, R10, REMOTE + 8)
    asm.jump_if_word(R2, Condition.EQUAL, MAPPED_WORD, "remote_v4")
    asm.load(R2, R10, REMOTE + 8, Size.LONG)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, "remote_v6")
    asm.store(R10, REMOTE + 12, LOOPBACK_V6_END)
    asm.load(R2, R10, SOURCE + 8)
    asm.jump_if_word(R2, Condition.NOT_EQUAL, MAPPED_WORD, "remote_v6")
    asm.store(R10, REMOTE + 8, MAPPED_WORD)
    asm.store(R10, REMOTE + 12, LOOPBACK_V4)
    asm.label("remote_v4")
    asm.load(R3, R10, SOURCE + 12)
    asm.load(R2, R10, REMOTE + 12)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, "source_v4")
    asm.store(R10, REMOTE + 12, R3)
    asm.jump_if(R3, Condition.NOT_EQUAL, 0, "source_v4")
    asm.store(R10, REMOTE + 12, LOOPBACK_V4)
    asm.label("source_v4")
    asm.jump_if(R3, Condition.NOT_EQUAL, 0, "bound")
    asm.store(R10, SOURCE + 8, 0, Size.LONG)
    asm.jump("described")
    asm.label("remote_v6")
    asm.load(R2, R10, SOURCE, Size.LONG)
    asm.load(R3, R10, SOURCE + 8, Size.LONG)
    asm.merge(R2, R3)
    asm.jump_if(R2, Condition.EQUAL, 0, "described")
    asm.label("bound")
    asm.store(R10, FLAGS, AttemptFlag.BOUND, Size.HALF)
    asm.label("described")


# --- the steps of the ladder ------------------------------------------------------------------------------------------
def because(code: Code) -> str:
    return f"because_{code.name.lower()}"


def link_local(asm: Assembler) -> None:
    asm.load(R2, R10, REMOTE)
    asm.mask(R2, word(b"\xff\xc0\0\0"))
    asm.jump_if_word(R2, Condition.EQUAL, word(b"\xfe\x80\0\0"), because(Code.LINK_LOCAL))


def look_up(asm: Assembler, map_fd: int, key_offset: int) -> None:
    asm.map(R1, map_fd)
    asm.point(R2, key_offset)
    asm.call(Helper.MAP_LOOKUP)


def look_up_only(asm: Assembler, map_fd: int, label: str) -> None:
    """The only element of an array map; `label` is never reached, but the verifier wants it."""
    asm.store(R10, KEY, 0)
    look_up(asm, map_fd, KEY)
    asm.jump_if(R0, Condition.EQUAL, 0, label)


def namespace(asm: Assembler, layout: Layout) -> None:
    look_up(asm, layout.namespaces, ATTEMPT + records.NAMESPACE)
    asm.jump_if(R0, Condition.EQUAL, 0, because(Code.OTHER_NETWORK_NAMESPACE))
    asm.load(R9, R0, 0)


def own_listener(asm: Assembler, layout: Layout) -> None:
    look_up_only(asm, layout.settings, because(Code.GATE_STALLED))
    asm.load(R2, R10, REMOTE, Size.LONG)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, "not_own")
    asm.load(R2, R10, REMOTE + 8)
    asm.load(R3, R10, REMOTE + 12)
    asm.jump_if_word(R2, Condition.EQUAL, 0, "own_v6")
    asm.jump_if_word(R2, Condition.NOT_EQUAL, MAPPED_WORD, "not_own")
    asm.jump_if_word(R3, Condition.NOT_EQUAL, LOOPBACK_V4, "not_own")
    asm.load(R2, R0, records.PORT_V4)
    asm.jump_if(R2, Condition.EQUAL, R8, because(Code.OWN_LISTENER))
    asm.jump("not_own")
    asm.label("own_v6")
    asm.jump_if_word(R3, Condition.NOT_EQUAL, LOOPBACK_V6_END, "not_own")
    asm.load(R2, R0, records.PORT_V6)
    asm.jump_if(R2, Condition.EQUAL, R8, because(Code.OWN_LISTENER))
    asm.label("not_own")


def heartbeat(asm: Assembler, layout: Layout) -> None:
    """The beat is read before the clock, so a beat of the future is no race but a lie: it wraps and counts as old."""
    look_up_only(asm, layout.heartbeat, because(Code.GATE_STALLED))
    asm.load(R2, R0, 0, Size.LONG)
    asm.store(R10, BEAT, R2, Size.LONG)
    asm.call(Helper.KTIME_NS)
    asm.load(R2, R10, BEAT, Size.LONG)
    asm.subtract(R0, R2)
    asm.jump_if(R0, Condition.ABOVE, STALL_NS, because(Code.GATE_STALLED))


def divert(asm: Assembler, layout: Layout, *, v6: bool) -> None:
    look_up_only(asm, layout.settings, because(Code.GATE_STALLED))
    asm.load(R9, R0, records.PORT_V4)
    asm.load(R2, R10, REMOTE, Size.LONG)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, "port_v6")
    asm.load(R2, R10, REMOTE + 8)
    asm.jump_if_word(R2, Condition.EQUAL, MAPPED_WORD, "port")
    asm.label("port_v6")
    asm.load(R9, R0, records.PORT_V6)
    asm.jump_if(R9, Condition.EQUAL, 0, because(Code.NO_IPV6_LISTENER))
    asm.label("port")
    if layout.selection is not None:
        note_selected(asm)
    remember(asm, layout)
    if v6:
        rewrite_v6(asm)
    else:
        asm.move_word(R2, LOOPBACK_V4)
        asm.store(R6, ADDRESS_V4, R2)
    asm.store(R6, USER_PORT, R9)
    count(asm, layout, Code.DIVERTED)
    asm.jump("pass")


def note_selected(asm: Assembler) -> None:
    """What the entry says now holds for this connection, whatever becomes of the process."""
    asm.load(R2, R10, VERDICT)
    asm.mask(R2, Verdict.SELECTED)
    asm.jump_if(R2, Condition.EQUAL, 0, "noted")
    asm.load(R2, R10, FLAGS, Size.HALF)
    asm.move(R3, AttemptFlag.SELECTED)
    asm.merge(R2, R3)
    asm.store(R10, FLAGS, R2, Size.HALF)
    asm.label("noted")


def remember(asm: Assembler, layout: Layout) -> None:
    """The truth in the socket first: without it, getpeername() would lie about a diverted connection."""
    asm.map(R1, layout.truth)
    asm.move(R2, R7)
    asm.move(R3, 0)
    asm.move(R4, STORAGE_CREATE)
    asm.call(Helper.SK_STORAGE_GET)
    asm.jump_if(R0, Condition.EQUAL, 0, because(Code.NO_MEMORY))
    for target, field in ((records.TRUTH_REMOTE, records.REMOTE), (records.TRUTH_SOURCE, records.SOURCE)):
        for index in (0, 8):
            asm.load(R2, R10, ATTEMPT + field + index, Size.LONG)
            asm.store(R0, target + index, R2, Size.LONG)
    asm.store(R0, records.TRUTH_PORT, R8)
    asm.move(R1, R6)
    asm.call(Helper.SOCKET_COOKIE)
    asm.store(R10, KEY, R0, Size.LONG)
    asm.map(R1, layout.origins)
    asm.point(R2, KEY)
    asm.point(R3, ATTEMPT)
    asm.move(R4, 0)
    asm.call(Helper.MAP_UPDATE)
    asm.jump_if(R0, Condition.EQUAL, 0, "remembered")
    asm.map(R1, layout.truth)
    asm.move(R2, R7)
    asm.call(Helper.SK_STORAGE_DELETE)
    asm.jump(because(Code.NO_MEMORY))
    asm.label("remembered")


def rewrite_v6(asm: Assembler, once: str = "") -> None:
    """`once` tells it apart where a program does it twice."""
    asm.load(R2, R10, REMOTE, Size.LONG)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, f"to_v6{once}")
    asm.load(R2, R10, REMOTE + 8)
    asm.jump_if_word(R2, Condition.NOT_EQUAL, MAPPED_WORD, f"to_v6{once}")
    asm.move_word(R3, MAPPED_WORD)
    asm.move_word(R4, LOOPBACK_V4)
    asm.jump(f"write{once}")
    asm.label(f"to_v6{once}")
    asm.move_word(R3, 0)
    asm.move_word(R4, LOOPBACK_V6_END)
    asm.label(f"write{once}")
    asm.move(R2, 0)
    for index, value in enumerate((R2, R2, R3, R4)):
        asm.store(R6, ADDRESS_V6 + 4 * index, value)


# --- the ends ---------------------------------------------------------------------------------------------------------
def ends(asm: Assembler, layout: Layout, codes: tuple[Code, ...]) -> None:
    """Whoever nobody has judged yet passes, and nothing is told: what fails here is not to fall on the unselected."""
    let_go = set(codes) - ALWAYS_DENIED if layout.on_failure is OnFailure.OPEN else set()
    for code in codes:
        asm.label(because(code))
        if layout.selection is not None and not layout.selection.everything:
            asm.load(R2, R10, VERDICT)
            asm.mask(R2, Verdict.SELECTED | Verdict.UNDECIDED)
            asm.jump_if(R2, Condition.EQUAL, Verdict.UNDECIDED, "pass")
        asm.store(R10, ATTEMPT + records.REASON, code)
        count(asm, layout, code)
        asm.jump("let_go" if code in let_go else "deny")
    if let_go:  # the verifier wants no instruction that is never reached
        asm.label("let_go")
        push(asm, layout)
    asm.label("pass")
    asm.exit(1)
    asm.label("deny")
    asm.load(R2, R10, FLAGS, Size.HALF)
    asm.move(R3, AttemptFlag.DENIED)
    asm.merge(R2, R3)
    asm.store(R10, FLAGS, R2, Size.HALF)
    push(asm, layout)
    asm.exit(0)


def push(asm: Assembler, layout: Layout) -> None:
    """A full ring keeps what it has; the count tells how many are missing."""
    asm.map(R1, layout.missed)
    asm.point(R2, ATTEMPT)
    asm.move(R3, records.ATTEMPT.size)
    asm.move(R4, 0)
    asm.call(Helper.RINGBUF_OUTPUT)


def count(asm: Assembler, layout: Layout, code: Code) -> None:
    asm.store(R10, KEY, code)
    look_up(asm, layout.counts, KEY)
    asm.jump_if(R0, Condition.EQUAL, 0, f"counted_{code.name}")
    asm.move(R2, 1)
    asm.add_atomically(R0, R2)
    asm.label(f"counted_{code.name}")
