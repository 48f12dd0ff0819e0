"""The running kernel's types."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from mitmsec_redirect import bpf, kernel_types
from mitmsec_redirect.btf import Btf
from mitmsec_redirect.process_offsets import Offsets


def test_the_running_kernel_says_where_it_keeps_what_we_read_of_processes() -> None:
    offsets = kernel_types.process_offsets()
    assert offsets is not None
    assert offsets.task_start > 0
    assert kernel_types.process_offsets() is offsets
    sockets = kernel_types.lead_offsets()
    assert sockets is not None
    assert 0 < sockets.v6 < sockets.interface_v4
    assert kernel_types.lead_offsets() is sockets


@pytest.mark.root
def test_our_programs_may_cast_where_the_kernel_has_a_function_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = kernel_types.process_offsets()
    assert offsets is not None
    has_it = Offsets.of(Btf(kernel_types.BTF_FILE.read_bytes())).cast
    assert offsets.cast == has_it
    monkeypatch.setattr(bpf, "load_program", _refused)
    link = Path("/sys/kernel/btf/../btf/vmlinux")  # another name, which nothing is kept of
    told = kernel_types.process_offsets(link)
    assert told is not None
    assert told == replace(offsets, cast=0)


def _refused(code: bytes, attach: bpf.Attach, name: str) -> int:
    raise bpf.ProgramRejected(22, "calling kernel function bpf_rdonly_cast is not allowed")


def test_types_that_are_not_there_or_not_whole_are_none(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x9f\xeb")
    assert kernel_types.process_offsets(broken) is None
    assert kernel_types.process_offsets(tmp_path / "missing") is None
    assert kernel_types.lead_offsets(broken) is kernel_types.lead_offsets(tmp_path / "missing") is None
