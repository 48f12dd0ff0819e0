"""Instructions as RFC 9669 writes them."""

from __future__ import annotations

import pytest

from mitmsec_redirect.assembler import Assembler, Condition, Helper, Register, Size


def test_instructions_are_encoded_as_the_standard_says() -> None:
    asm = Assembler()
    asm.move(Register.R6, Register.R1)
    asm.move(Register.R0, -1)
    asm.move_word(Register.R2, 0xFFFF0000)
    asm.load(Register.R2, Register.R6, 64, Size.LONG)
    asm.store(Register.R10, -8, Register.R2, Size.HALF)
    asm.store(Register.R10, -8, 5)
    asm.point(Register.R2, -8)
    asm.subtract(Register.R2, Register.R3)
    asm.mask(Register.R2, 0xFF)
    asm.merge(Register.R2, Register.R3)
    asm.intersect(Register.R2, Register.R3)
    asm.shift_right(Register.R0, 32)
    asm.add_atomically(Register.R0, Register.R2)
    asm.exchange_if_r0(Register.R1, Register.R8)
    asm.add(Register.R2, -8)
    asm.add(Register.R2, Register.R3)
    asm.map(Register.R1, 7)
    asm.call(Helper.KTIME_NS)
    asm.exit(1)
    assert [asm.code()[at : at + 8].hex() for at in range(0, len(asm.code()), 8)] == [
        "bf16000000000000",
        "b7000000ffffffff",
        "b40200000000ffff",
        "7962400000000000",
        "6b2af8ff00000000",
        "620af8ff05000000",
        "bfa2000000000000",
        "07020000f8ffffff",
        "1f32000000000000",
        "54020000ff000000",
        "4f32000000000000",
        "5f32000000000000",
        "7700000020000000",
        "db20000000000000",
        "db810000f1000000",
        "07020000f8ffffff",
        "0f32000000000000",
        "1811000007000000",
        "0000000000000000",
        "8500000005000000",
        "b700000001000000",
        "9500000000000000",
    ]


def test_jumps_go_forward_and_back_to_their_labels() -> None:
    asm = Assembler()
    asm.label("start")
    asm.jump_if(Register.R2, Condition.EQUAL, 17, "end")
    asm.jump_if(Register.R2, Condition.ABOVE, Register.R3, "end")
    asm.jump_if_word(Register.R2, Condition.NOT_EQUAL, 0xFFFF0000, "start")
    asm.jump("start")
    asm.label("end")
    asm.exit(0)
    code = asm.code()
    assert [code[at : at + 8].hex() for at in range(0, 32, 8)] == [
        "1502030011000000",
        "2d32020000000000",
        "5602fdff0000ffff",
        "0500fcff00000000",
    ]


@pytest.mark.parametrize("value", [1 << 32, -(1 << 31) - 1])
def test_an_immediate_that_does_not_fit_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="32 bits"):
        Assembler().move(Register.R0, value)


def test_a_label_set_twice_is_refused() -> None:
    asm = Assembler()
    asm.label("here")
    with pytest.raises(ValueError, match="twice"):
        asm.label("here")


def test_a_label_that_is_nowhere_is_refused() -> None:
    asm = Assembler()
    asm.jump("nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        asm.code()


def test_a_label_too_far_away_is_refused() -> None:
    asm = Assembler()
    asm.jump("far")
    for _ in range(0x8001):
        asm.move(Register.R0, 0)
    asm.label("far")
    with pytest.raises(ValueError, match="instructions away"):
        asm.code()
