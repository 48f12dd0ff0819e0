"""A small eBPF assembler: instructions by meaning, jumps by label.

    opcode (8) | source (4) destination (4) | offset (16) | immediate (32)

Instruction set: Documentation/bpf/standardization/instruction-set.rst of the kernel (RFC 9669). Only what our programs
use is here. All errors are the caller's and raise ValueError: there is no untrusted input.
"""

from __future__ import annotations

import struct
from enum import IntEnum

_FORMAT = struct.Struct("=BBhi")
OFFSET_MAX = 0x7FFF
PSEUDO_MAP_FD = 1
PSEUDO_KFUNC_CALL = 2


class Register(IntEnum):
    """R0 answers; R1–R5 are arguments and lost at each call; R6–R9 survive; R10 is the frame pointer."""

    R0 = 0
    R1 = 1
    R2 = 2
    R3 = 3
    R4 = 4
    R5 = 5
    R6 = 6
    R7 = 7
    R8 = 8
    R9 = 9
    R10 = 10


class Size(IntEnum):
    """The width of one access to memory."""

    WORD = 0x00  # 4 bytes
    HALF = 0x08  # 2 bytes
    BYTE = 0x10
    LONG = 0x18  # 8 bytes


class Condition(IntEnum):
    """When a conditional jump is taken; all comparisons are unsigned."""

    EQUAL = 0x10
    ABOVE = 0x20
    NOT_EQUAL = 0x50


class Helper(IntEnum):
    """Numbers of the kernel's helper functions, with the release that brought each to our program type."""

    MAP_LOOKUP = 1
    MAP_UPDATE = 2
    MAP_DELETE = 3
    KTIME_NS = 5
    PID_TGID = 14
    UID_GID = 15
    COMM = 16
    SKB_LOAD_BYTES = 26  # 4.10
    SKB_UNDER_CGROUP = 33  # 4.8, for classifiers
    SOCKET_COOKIE = 46  # 4.18
    CALLBACKS_SET = 59  # bpf_sock_ops_cb_flags_set, 4.16
    SK_RELEASE = 86  # 4.20
    SK_FULLSOCK = 95  # 5.1
    SK_STORAGE_GET = 107  # 5.3
    SK_STORAGE_DELETE = 108  # 5.3
    PROBE_READ_KERNEL = 113  # 5.5
    PROBE_READ_KERNEL_STR = 115  # 5.5
    NETNS_COOKIE = 122  # 5.7
    ANCESTOR_CGROUP_ID = 123  # 5.7
    SK_ASSIGN = 124  # 5.9, for lookup programs
    RINGBUF_OUTPUT = 130  # 5.8
    RINGBUF_RESERVE = 131  # 5.8
    RINGBUF_SUBMIT = 132  # 5.8
    RINGBUF_DISCARD = 133  # 5.8
    TCP_SOCK = 137  # bpf_skc_to_tcp_sock, 5.9
    CURRENT_TASK = 158  # with its type; 5.18, for CAP_PERFMON
    SET_RETVAL = 187  # 5.18


class Assembler:
    """Collects instructions; `code()` resolves the labels."""

    def __init__(self) -> None:
        self._code: list[bytes] = []
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []

    def _emit(self, opcode: int, destination: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> None:
        if not -(1 << 31) <= immediate < 1 << 32:
            raise ValueError(f"immediate {immediate} does not fit in 32 bits")
        signed = immediate - (1 << 32) if immediate >= 1 << 31 else immediate
        self._code.append(_FORMAT.pack(opcode, destination | source << 4, offset, signed))

    def _emit_jump(self, opcode: int, label: str, destination: int = 0, source: int = 0, immediate: int = 0) -> None:
        self._jumps.append((len(self._code), label))
        self._emit(opcode, destination, source, 0, immediate)

    # -- memory --------------------------------------------------------------------------------------------------------
    def load(self, into: Register, base: Register, offset: int, size: Size = Size.WORD) -> None:
        self._emit(0x61 | size, into, base, offset)

    def store(self, base: Register, offset: int, value: Register | int, size: Size = Size.WORD) -> None:
        """Store a register, or a constant (sign-extended when `size` is LONG)."""
        if isinstance(value, Register):
            self._emit(0x63 | size, base, value, offset)
        else:
            self._emit(0x62 | size, base, 0, offset, value)

    def add_atomically(self, base: Register, value: Register) -> None:
        """Add `value` to the 8 bytes at `base`, as one operation."""
        self._emit(0xDB, base, value, 0, 0)

    def exchange_if_r0(self, base: Register, value: Register) -> None:
        """If the 8 bytes at `base` equal R0, they become `value`; either way R0 is what they were (Linux 5.12)."""
        self._emit(0xDB, base, value, 0, 0xF1)

    # -- arithmetic ----------------------------------------------------------------------------------------------------
    def move(self, into: Register, value: Register | int) -> None:
        """A register, or a constant that is sign-extended to 64 bits."""
        if isinstance(value, Register):
            self._emit(0xBF, into, value)
        else:
            self._emit(0xB7, into, immediate=value)

    def move_word(self, into: Register, value: int) -> None:
        """A 32-bit constant; the upper half becomes zero."""
        self._emit(0xB4, into, immediate=value)

    def point(self, into: Register, offset: int) -> None:
        """The address of the stack slot at `offset` from the frame pointer."""
        self.move(into, Register.R10)
        self.add(into, offset)

    def add(self, into: Register, value: Register | int) -> None:
        if isinstance(value, Register):
            self._emit(0x0F, into, value)
        else:
            self._emit(0x07, into, immediate=value)

    def subtract(self, into: Register, value: Register) -> None:
        self._emit(0x1F, into, value)

    def mask(self, register: Register, bits: int) -> None:
        """Keep `bits` (fewer than 32) of the register."""
        self._emit(0x54, register, immediate=bits)

    def intersect(self, into: Register, value: Register) -> None:
        """Bitwise and."""
        self._emit(0x5F, into, value)

    def merge(self, into: Register, value: Register) -> None:
        """Bitwise or."""
        self._emit(0x4F, into, value)

    def shift_right(self, register: Register, bits: int) -> None:
        self._emit(0x77, register, immediate=bits)

    def map(self, into: Register, fd: int) -> None:
        """The map with descriptor `fd` of the process that loads the program."""
        self._emit(0x18, into, PSEUDO_MAP_FD, 0, fd)
        self._emit(0)

    # -- control -------------------------------------------------------------------------------------------------------
    def label(self, name: str) -> None:
        """The next instruction is reached by jumps to `name`."""
        if name in self._labels:
            raise ValueError(f"label {name} is set twice")
        self._labels[name] = len(self._code)

    def jump(self, label: str) -> None:
        self._emit_jump(0x05, label)

    def jump_if(self, left: Register, condition: Condition, right: Register | int, label: str) -> None:
        """Compares 64 bits; a constant is sign-extended."""
        if isinstance(right, Register):
            self._emit_jump(0x0D | condition, label, left, right)
        else:
            self._emit_jump(0x05 | condition, label, left, immediate=right)

    def jump_if_word(self, left: Register, condition: Condition, right: int, label: str) -> None:
        """Compares the lower 32 bits with a constant (Linux 5.1)."""
        self._emit_jump(0x06 | condition, label, left, immediate=right)

    def call(self, helper: Helper) -> None:
        self._emit(0x85, immediate=helper)

    def call_kernel(self, function: int) -> None:
        """A function of the kernel's own, by its id in the kernel's types (kfunc)."""
        self._emit(0x85, source=PSEUDO_KFUNC_CALL, immediate=function)

    def exit(self, answer: int) -> None:
        """End the program with `answer`."""
        self.move(Register.R0, answer)
        self._emit(0x95)

    def code(self) -> bytes:
        """The program, labels resolved. Raises ValueError for a label that is not set or too far away."""
        code = list(self._code)
        for at, label in self._jumps:
            if label not in self._labels:
                raise ValueError(f"label {label} is not set")
            offset = self._labels[label] - at - 1
            if abs(offset) > OFFSET_MAX:
                raise ValueError(f"label {label} is {offset} instructions away")
            opcode, registers, _, immediate = _FORMAT.unpack(code[at])
            code[at] = _FORMAT.pack(opcode, registers, offset, immediate)
        return b"".join(code)
