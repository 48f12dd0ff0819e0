"""The programs that note connections, as the verifier sees them. What they do: `test_connect_notes`."""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack

import pytest

from mitmsec.core.model import OnFailure
from mitmsec_redirect import hook_programs, noting_programs
from mitmsec_redirect.bpf import Attach, Map, MapKind
from mitmsec_redirect.connect_hook import socket_storage
from mitmsec_redirect.noting_programs import NoteLayout
from mitmsec_redirect.steps import Selection

INSTRUCTION_BYTES = 8


def layout(on_failure: OnFailure, *, everything: bool) -> NoteLayout:
    return NoteLayout(3, 4, 5, 6, on_failure, Selection(7, 8, everything=everything))


@pytest.mark.root
@pytest.mark.parametrize("on_failure", OnFailure)
@pytest.mark.parametrize("everything", [False, True])
def test_every_program_is_accepted(on_failure: OnFailure, everything: bool) -> None:
    with ExitStack() as held:

        def made(kind: MapKind, key: int, value: int) -> int:
            return held.enter_context(contextlib.closing(Map.create(kind, key, value, 1, "ms_test"))).fd

        selection = Selection(made(MapKind.HASH, 4, 8), made(MapKind.HASH, 8, 4), everything=everything)
        cookies, namespaces, counts = made(MapKind.LRU_HASH, 8, 4), made(MapKind.HASH, 8, 4), made(MapKind.ARRAY, 4, 8)
        sockets = socket_storage("ms_test", 4, held).fd
        whole = NoteLayout(sockets, cookies, namespaces, counts, on_failure, selection)
        _, programs, _ = hook_programs.load((whole,), noting_programs.build, "ms_test_")
        for program in programs.values():
            held.callback(os.close, program)
        assert set(programs) == {Attach.CONNECT4, Attach.CONNECT6}


def test_terms_are_in_the_code_and_nothing_else_differs() -> None:
    closed, opened = (
        noting_programs.build(layout(one, everything=False)) for one in (OnFailure.CLOSED, OnFailure.OPEN)
    )
    assert {name: len(code) for name, code in closed.items()} == {name: len(code) for name, code in opened.items()}
    different = [at for at in range(len(closed["CONNECT4"])) if closed["CONNECT4"][at] != opened["CONNECT4"][at]]
    assert len(different) == 1, "what a connection gets that could not be noted"
