"""The programs that note who calls, as the verifier sees them. What they do: `test_call_notes`."""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack

import pytest

from mitmsec_redirect import call_programs, hook_programs, kernel_types, records
from mitmsec_redirect.bpf import Attach, Map, MapKind
from mitmsec_redirect.call_programs import CallLayout


@pytest.mark.root
@pytest.mark.parametrize("has_types", [True, False])
def test_every_program_is_accepted(has_types: bool) -> None:
    with ExitStack() as held:
        calls = Map.create(MapKind.LRU_HASH, records.COOKIE.size, records.ATTEMPT.size, 1, "ms_test")
        held.enter_context(contextlib.closing(calls))
        layout = CallLayout(calls.fd, kernel_types.process_offsets() if has_types else None)
        _, programs, _ = hook_programs.load((layout,), call_programs.build, "ms_test_")
        for program in programs.values():
            held.callback(os.close, program)
        assert set(programs) == {Attach.CONNECT4, Attach.CONNECT6}


def test_without_types_less_is_read_and_the_same_noted() -> None:
    bare = call_programs.build(CallLayout(3, None))
    assert set(bare) == {"CONNECT4", "CONNECT6"}
    assert bare == call_programs.build(CallLayout(3, None))
    if (offsets := kernel_types.process_offsets()) is not None:
        whole = call_programs.build(CallLayout(3, offsets))
        assert all(len(whole[name]) > len(code) for name, code in bare.items())
