"""Instructions that keep what listens in the maps of `steering`: who, by its cookie, and how many at which address.

    listen()    ─► by cookie: new there? ── yes ─► where it listens: one more
    the last close(), or it listens no more
                ─► by cookie: still there? ─ yes ─► where it listened: one less

A cookie comes and goes once, whoever takes it away: so each is counted once, up and down, and by one instruction. Who
listens on all addresses of IPv6, and has not said that it wants no IPv4, is counted at all addresses of IPv4 too.

A program that is undecided, and it may be so for ever, has a share of either room (`steering_records`). Whatever finds
no room is counted, and comes in as ever.

A place is never taken out of its map, though nobody listens there any more. Somebody else may have looked it up and be
about to count there; the kernel gives the memory of what is taken out to another place at once, which would then have
that count, and no instruction takes out only what is zero. So what the undecided had of the places is not given back
either, but for who is selected after all: they could use up all places, one after the other.
"""

from __future__ import annotations

import errno

from mitmsec_redirect import inbound_records as records
from mitmsec_redirect import steering_records as shared
from mitmsec_redirect import steps
from mitmsec_redirect.assembler import Assembler, Condition, Helper, Register, Size
from mitmsec_redirect.inbound_records import InboundFlag
from mitmsec_redirect.process_offsets import Offsets
from mitmsec_redirect.records import word
from mitmsec_redirect.steering_records import Steered, SteeringMaps
from mitmsec_redirect.steps import AF_INET, MAPPED_WORD, R0, R1, R2, R3, R4, R6, R7, R8, R9, R10

FAMILY, LOCAL_V4, LOCAL_V6, LOCAL_PORT = 20, 28, 48, 68  # of struct bpf_sock_ops
BOUND_DEVICE = 0  # of struct bpf_sock
TELL_STATES = 4  # BPF_SOCK_OPS_STATE_CB_FLAG
UNLESS_THERE = 1  # BPF_NOEXIST
IS_THERE = -errno.EEXIST & 0xFFFFFFFF  # what that answers then, as a word
# our stack, from the frame pointer
COUNT, COOKIE, SERVED, SERVED_V4 = -8, -16, -40, -64
LONG = Size.LONG


def keep(asm: Assembler, maps: SteeringMaps, at: Offsets, *, some_undecided: bool) -> None:
    """The listener of the context R6, its socket R7, its record R8: only in the namespace that the gate is in.

    `some_undecided`: whose record has not BY_SELECTED is undecided; else nobody is.
    """
    asm.move(R1, R6)
    asm.call(Helper.NETNS_COOKIE)
    asm.jump_if_word(R0, Condition.NOT_EQUAL, maps.namespace & 0xFFFFFFFF, "kept")
    asm.shift_right(R0, 32)
    asm.jump_if_word(R0, Condition.NOT_EQUAL, maps.namespace >> 32, "kept")
    _unless_bound_to_device(asm)
    asm.call(Helper.KTIME_NS)
    asm.store(R8, records.AT, R0, LONG)
    asm.move(R1, R6)
    asm.move(R2, TELL_STATES)
    asm.call(Helper.CALLBACKS_SET)
    _where(asm)
    _copy(asm, (R10, SERVED, shared.SERVED_LOCAL, shared.SERVED_PORT), (R8, 0, records.LOCAL, records.LOCAL_PORT))
    _cookie(asm)
    asm.store(R8, records.COOKIE, R0, LONG)
    asm.store(R10, COUNT, 0, LONG)
    if some_undecided:
        _share_listener(asm, maps)
    _make_room(asm, maps, SERVED, "one", some_undecided=some_undecided)
    _also_v4(asm, at)
    asm.jump_if(R9, Condition.EQUAL, 0, "one_place")
    _all_of_v4(asm)
    _make_room(asm, maps, SERVED_V4, "all", some_undecided=some_undecided)
    asm.load(R2, R8, records.FLAGS)
    asm.move(R3, InboundFlag.ALSO_V4)
    asm.merge(R2, R3)
    asm.store(R8, records.FLAGS, R2)
    asm.label("one_place")
    asm.map(R1, maps.listeners)
    asm.point(R2, COOKIE)
    asm.move(R3, R8)
    asm.move(R4, UNLESS_THERE)
    asm.call(Helper.MAP_UPDATE)
    asm.jump_if_word(R0, Condition.EQUAL, IS_THERE, "kept")  # user space has just found it
    asm.jump_if(R0, Condition.NOT_EQUAL, 0, "no_room")  # it is told as it comes in
    _count(asm, maps, SERVED, 1, "kept")
    asm.jump_if(R9, Condition.EQUAL, 0, "kept")
    _count(asm, maps, SERVED_V4, 1, "kept")
    asm.jump("kept")
    asm.label("no_room")
    _no_room(asm, maps, some_undecided=some_undecided)
    asm.label("kept")


def forget(asm: Assembler, maps: SteeringMaps) -> None:
    """The socket of the context R6 listens no more; on to "out" if it was not kept."""
    _cookie(asm)
    steps.look_up(asm, maps.listeners, COOKIE)
    asm.jump_if(R0, Condition.EQUAL, 0, "out")
    _copy(asm, (R0, 0, records.LOCAL, records.LOCAL_PORT), (R10, SERVED, shared.SERVED_LOCAL, shared.SERVED_PORT))
    asm.load(R9, R0, records.FLAGS)
    asm.mask(R9, InboundFlag.ALSO_V4)
    asm.map(R1, maps.listeners)
    asm.point(R2, COOKIE)
    asm.call(Helper.MAP_DELETE)
    asm.jump_if(R0, Condition.NOT_EQUAL, 0, "out")  # somebody else has just done so
    _undecided_no_more(asm, maps)
    _count(asm, maps, SERVED, -1, "out")
    asm.jump_if(R9, Condition.EQUAL, 0, "out")
    _all_of_v4(asm)
    _count(asm, maps, SERVED_V4, -1, "out")


def _make_room(asm: Assembler, maps: SteeringMaps, key: int, name: str, *, some_undecided: bool) -> None:
    """From now on it can be counted at `key`; on to "no_room" where there is none. `name` is this call's own."""
    if some_undecided:
        _unless_undecided(asm, f"{name}_shared")
        steps.look_up(asm, maps.served, key)
        asm.jump_if(R0, Condition.NOT_EQUAL, 0, f"{name}_made")  # for whoever was there first
        _insert(asm, maps.undecided_at, key)
        asm.jump_if_word(R0, Condition.EQUAL, IS_THERE, f"{name}_shared")
        asm.jump_if(R0, Condition.NOT_EQUAL, 0, "no_room")
        asm.label(f"{name}_shared")
    _insert(asm, maps.served, key)
    steps.look_up(asm, maps.served, key)
    asm.jump_if(R0, Condition.EQUAL, 0, "no_room")
    if some_undecided:
        asm.label(f"{name}_made")


def _share_listener(asm: Assembler, maps: SteeringMaps) -> None:
    """An undecided program's takes of their share; on to "no_room" where that is used up."""
    _unless_undecided(asm, "listener_shared")
    _insert(asm, maps.undecided, COOKIE)
    asm.jump_if_word(R0, Condition.EQUAL, IS_THERE, "listener_shared")
    asm.jump_if(R0, Condition.NOT_EQUAL, 0, "no_room")
    asm.label("listener_shared")


def _unless_undecided(asm: Assembler, label: str) -> None:
    asm.load(R2, R8, records.FLAGS)
    asm.mask(R2, InboundFlag.BY_SELECTED)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, label)


def _undecided_no_more(asm: Assembler, maps: SteeringMaps) -> None:
    asm.map(R1, maps.undecided)
    asm.point(R2, COOKIE)
    asm.call(Helper.MAP_DELETE)


def _no_room(asm: Assembler, maps: SteeringMaps, *, some_undecided: bool) -> None:
    """It is counted, and takes of nobody's share."""
    if some_undecided:
        _undecided_no_more(asm, maps)
        asm.store(R10, COUNT, Steered.NO_ROOM_UNDECIDED)
        asm.load(R2, R8, records.FLAGS)
        asm.mask(R2, InboundFlag.BY_SELECTED)
        asm.jump_if(R2, Condition.EQUAL, 0, "whose_no_room")
    asm.store(R10, COUNT, Steered.NO_ROOM)
    asm.label("whose_no_room")
    steps.look_up(asm, maps.counts, COUNT)
    asm.jump_if(R0, Condition.EQUAL, 0, "kept")
    asm.move(R2, 1)
    asm.add_atomically(R0, R2)


def _insert(asm: Assembler, map_fd: int, key: int) -> None:
    """Zero (COUNT) at `key`, unless something is there. R0: the kernel's answer."""
    asm.map(R1, map_fd)
    asm.point(R2, key)
    asm.point(R3, COUNT)
    asm.move(R4, UNLESS_THERE)
    asm.call(Helper.MAP_UPDATE)


def _count(asm: Assembler, maps: SteeringMaps, key: int, more: int, label: str) -> None:
    """On to `label` where there is nothing to count; never, but the verifier wants it."""
    steps.look_up(asm, maps.served, key)
    asm.jump_if(R0, Condition.EQUAL, 0, label)
    asm.move(R2, more)
    asm.add_atomically(R0, R2)


def _also_v4(asm: Assembler, at: Offsets) -> None:
    """R9: whether the socket R7, which listens at SERVED, gets what is called at any address of IPv4 too."""
    asm.move(R9, 0)
    for half in (0, 8):
        asm.load(R2, R10, SERVED + shared.SERVED_LOCAL + half, LONG)
        asm.jump_if(R2, Condition.NOT_EQUAL, 0, "of_one_family")
    asm.move(R1, R7)
    asm.call(Helper.TCP_SOCK)
    asm.jump_if(R0, Condition.EQUAL, 0, "of_one_family")  # never: it is one
    asm.load(R2, R0, at.sock_v6only_bit // 8, Size.BYTE)
    asm.mask(R2, 1 << at.sock_v6only_bit % 8)
    asm.jump_if(R2, Condition.NOT_EQUAL, 0, "of_one_family")
    asm.move(R9, 1)
    asm.label("of_one_family")


def _all_of_v4(asm: Assembler) -> None:
    """Into SERVED_V4: the port of SERVED at all addresses of IPv4."""
    for half in (0, 8):
        asm.store(R10, SERVED_V4 + shared.SERVED_LOCAL + half, 0, LONG)
    asm.store(R10, SERVED_V4 + shared.SERVED_LOCAL + 8, MAPPED_WORD)
    asm.load(R2, R10, SERVED + shared.SERVED_PORT)
    asm.store(R10, SERVED_V4 + shared.SERVED_PORT, R2)


def _unless_bound_to_device(asm: Assembler) -> None:
    """On to "kept" for who is, but by a link-local address: the gate could not find out that a leg reaches it."""
    asm.load(R2, R7, BOUND_DEVICE)
    asm.jump_if(R2, Condition.EQUAL, 0, "anywhere")
    asm.load(R2, R6, LOCAL_V6)
    asm.mask(R2, word(b"\xff\xc0\0\0"))
    asm.jump_if(R2, Condition.NOT_EQUAL, word(b"\xfe\x80\0\0"), "kept")
    asm.label("anywhere")


def _where(asm: Assembler) -> None:
    """Into SERVED."""
    local = SERVED + shared.SERVED_LOCAL
    asm.load(R2, R6, LOCAL_PORT)
    asm.store(R10, SERVED + shared.SERVED_PORT, R2)
    asm.load(R2, R6, FAMILY)
    asm.jump_if(R2, Condition.EQUAL, AF_INET, "where_four")
    for index in range(0, 16, 4):
        asm.load(R2, R6, LOCAL_V6 + index)
        asm.store(R10, local + index, R2)
    asm.jump("where")
    asm.label("where_four")
    asm.store(R10, local, 0, LONG)
    asm.store(R10, local + 8, MAPPED_WORD)
    asm.load(R2, R6, LOCAL_V4)
    asm.store(R10, local + 12, R2)
    asm.label("where")


def _copy(asm: Assembler, source: tuple[Register, int, int, int], to: tuple[Register, int, int, int]) -> None:
    """Address and port, each given as a base, a place from there, and where address and port are from that."""
    (base, place, local, port), (to_base, to_place, to_local, to_port) = source, to
    for half in (0, 8):
        asm.load(R2, base, place + local + half, LONG)
        asm.store(to_base, to_place + to_local + half, R2, LONG)
    asm.load(R2, base, place + port)
    asm.store(to_base, to_place + to_port, R2)


def _cookie(asm: Assembler) -> None:
    asm.move(R1, R6)
    asm.call(Helper.SOCKET_COOKIE)
    asm.store(R10, COOKIE, R0, LONG)
