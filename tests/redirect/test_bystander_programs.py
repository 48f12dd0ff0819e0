"""The classifiers as the verifier sees them, and what they answer about packets of nobody."""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack

import pytest

from mitmsec_redirect import bpf, bystander_programs
from mitmsec_redirect.connect_hook import socket_storage

INSTRUCTION_BYTES = 8


@pytest.mark.root
def test_every_program_is_accepted() -> None:
    with ExitStack() as held:
        cgroups = held.enter_context(contextlib.closing(bpf.Map.create(bpf.MapKind.CGROUP_ARRAY, 4, 4, 1, "ms_test")))
        codes = (
            bystander_programs.leave(cgroups.fd, 8085),
            bystander_programs.leave_unnoted(socket_storage("ms_test", 4, held).fd, 8085),
            bystander_programs.leave_all(),
            bystander_programs.back(),
        )
        programs = [bpf.load_classifier(code, "ms_test") for code in codes]
    for program in programs:
        assert os.readlink(f"/proc/self/fd/{program}") == "anon_inode:bpf-prog"
        os.close(program)


def test_everybodys_packets_pay_for_few_instructions() -> None:
    assert len(bystander_programs.leave(3, 8085)) <= 28 * INSTRUCTION_BYTES
    assert len(bystander_programs.leave_unnoted(3, 8085)) <= 28 * INSTRUCTION_BYTES
    assert len(bystander_programs.leave_all()) == len(bystander_programs.back()) <= 6 * INSTRUCTION_BYTES


def test_the_mark_is_of_the_librarys_kind_and_of_no_handle() -> None:
    assert bystander_programs.LEFT_MARK >> 16 == 0x4D49
    assert bystander_programs.LEFT_MARK & 0xFFFF == 0xFFFF
