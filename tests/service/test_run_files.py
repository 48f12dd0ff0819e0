"""Files that a run hands on."""

from __future__ import annotations

import os

import pytest

from mitmsec.service.run import memory_file


def test_a_memory_file_is_what_it_was_made_of() -> None:
    descriptor = memory_file("test", b"policy")
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    assert os.pread(descriptor, 10, 0) == b"policy"
    os.close(descriptor)
