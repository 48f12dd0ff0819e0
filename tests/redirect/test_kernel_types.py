"""The running kernel's types."""

from __future__ import annotations

from pathlib import Path

from mitmsec_redirect import kernel_types


def test_the_running_kernel_says_where_it_keeps_what_we_read_of_processes() -> None:
    offsets = kernel_types.process_offsets()
    assert offsets is not None
    assert offsets.task_start > 0
    assert kernel_types.process_offsets() is offsets
    sockets = kernel_types.lead_offsets()
    assert sockets is not None
    assert 0 < sockets.v6 < sockets.interface_v4
    assert kernel_types.lead_offsets() is sockets


def test_types_that_are_not_there_or_not_whole_are_none(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x9f\xeb")
    assert kernel_types.process_offsets(broken) is None
    assert kernel_types.process_offsets(tmp_path / "missing") is None
    assert kernel_types.lead_offsets(broken) is kernel_types.lead_offsets(tmp_path / "missing") is None
