"""bpf(2) for real, and its errors."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from mitmsec_redirect import bpf, bpffs
from mitmsec_redirect.assembler import Assembler, Register, Size
from mitmsec_redirect.bpf import Attach, EbpfUnavailable, Map, MapKind, ProgramRejected


@pytest.mark.root
def test_a_hash_map_holds_what_it_is_told() -> None:
    made = Map.create(MapKind.HASH, 4, 8, 2, "ms_test")
    assert made.lookup(b"aaaa") is None
    made.update(b"aaaa", b"12345678")
    made.update(b"bbbb", b"87654321")
    assert made.lookup(b"aaaa") == b"12345678"
    assert set(made.keys()) == {b"aaaa", b"bbbb"}
    with pytest.raises(OSError, match="MAP_UPDATE"):
        made.update(b"cccc", b"12345678")
    assert made.delete(b"aaaa")
    assert not made.delete(b"aaaa")
    made.close()


@pytest.mark.root
def test_what_is_inserted_never_replaces() -> None:
    made = Map.create(MapKind.HASH, 4, 8, 1, "ms_test")
    assert made.insert(b"aaaa", b"12345678")
    assert not made.insert(b"aaaa", b"87654321")
    assert made.lookup(b"aaaa") == b"12345678"
    with pytest.raises(OSError, match="MAP_UPDATE"):
        made.insert(b"bbbb", b"12345678")
    made.close()


@pytest.mark.root
def test_a_program_runs_on_demand_with_arguments_and_answers() -> None:
    asm = Assembler()
    asm.load(Register.R0, Register.R1, 8, Size.LONG)
    asm.load(Register.R2, Register.R1, 0, Size.LONG)
    asm.add(Register.R0, Register.R2)
    asm._emit(0x95)
    program = bpf.load_runnable(asm.code(), "ms_sum")
    assert bpf.run(program, 40, 2) == 42
    os.close(program)


@pytest.mark.root
def test_a_tracing_program_whose_types_are_others_is_rejected() -> None:
    asm = Assembler()
    asm.exit(0)
    with pytest.raises((ProgramRejected, OSError)):
        bpf.load_tracing(asm.code(), 1, "ms_bad")


@pytest.mark.root
@pytest.mark.parametrize("kind", [MapKind.HASH, MapKind.LRU_HASH])
def test_what_is_taken_from_a_hash_is_there_no_more(kind: MapKind) -> None:
    table = Map.create(kind, 4, 4, 8, "ms_test")
    table.update(b"aaaa", b"1111")
    assert table.take(b"aaaa") == b"1111"
    assert (table.take(b"aaaa"), table.lookup(b"aaaa")) == (None, None)
    table.close()


@pytest.mark.root
def test_keys_and_values_of_another_size_never_reach_the_kernel() -> None:
    made = Map.create(MapKind.ARRAY, 4, 8, 1, "ms_test")
    with pytest.raises(ValueError, match="4 bytes"):
        made.lookup(b"123")
    with pytest.raises(ValueError, match="8 bytes"):
        made.update(bytes(4), b"1")
    made.close()


@pytest.mark.root
def test_a_rejected_program_brings_the_verifiers_words() -> None:
    asm = Assembler()
    asm.load(Register.R0, Register.R5, 0)
    asm.exit(1)
    with pytest.raises(ProgramRejected, match="R5 !read_ok"):
        bpf.load_program(asm.code(), Attach.CONNECT4, "ms_bad")


@pytest.mark.root
def test_a_program_is_loaded_and_counted() -> None:
    asm = Assembler()
    asm.exit(1)
    program = bpf.load_program(asm.code(), Attach.CONNECT4, "ms_good")
    assert bpf.run_count(program) == bpf.RunCount(runs=0, run_time_ns=0)
    os.close(program)


@pytest.mark.root
def test_a_pin_outlives_its_descriptor(tmp_path: Path) -> None:
    bpffs.mount(tmp_path / "bpf")
    try:
        made = Map.create(MapKind.ARRAY, 4, 8, 1, "ms_test")
        made.update(bytes(4), b"12345678")
        bpf.pin(made.fd, str(tmp_path / "bpf" / "map"))
        made.close()
        again = Map(bpf.pinned(str(tmp_path / "bpf" / "map")), 4, 8)
        assert again.lookup(bytes(4)) == b"12345678"
        again.close()
    finally:
        bpffs.unmount(tmp_path / "bpf")


@pytest.mark.root
def test_malformed_btf_is_refused() -> None:
    with pytest.raises(OSError, match="load BTF"):
        bpf.load_btf(b"rubbish")


@pytest.mark.parametrize(("code", "reason"), [(errno.EPERM, "permit"), (errno.ENOSYS, "has no bpf")])
def test_what_the_machine_does_not_allow_comes_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    class Libc:
        def syscall(self, *_: object) -> int:
            ctypes.set_errno(code)
            return -1

    monkeypatch.setattr(bpf, "_libc", Libc())
    with pytest.raises(EbpfUnavailable, match=reason) as raised:
        bpf.enable_stats()
    assert raised.value.remedy


def test_another_architecture_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf, "_number", -1)
    with pytest.raises(EbpfUnavailable, match="no bpf\\(2\\) number"):
        bpf.enable_stats()
