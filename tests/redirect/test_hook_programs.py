"""Programs are loaded as good as the kernel accepts them, as a whole, and put on a cgroup in one step each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from descriptors import bpf_objects
from hypothesis import given
from hypothesis import strategies as st
from redirect_sandbox import Sandbox

from mitmsec_redirect import hook_programs
from mitmsec_redirect.assembler import Assembler, Register
from mitmsec_redirect.bpf import Attach, ProgramRejected

pytestmark = pytest.mark.root


def program(*, good: bool = True) -> bytes:
    asm = Assembler()
    if not good:
        asm.load(Register.R0, Register.R9, 0)  # which nobody has written
    asm.exit(1)
    return asm.code()


def build(layout: str) -> Mapping[str, bytes]:
    """Of a layout "ab" the first program is good if `a` is "g", and so on."""
    names = ("CONNECT4", "CONNECT6")
    return {name: program(good=letter == "g") for name, letter in zip(names, layout, strict=True)}


def test_the_first_layout_is_taken_of_which_all_programs_are_accepted() -> None:
    before = bpf_objects()
    layout, programs, refused = hook_programs.load(("gb", "bg", "gg", "gg"), build, "ms_test_")
    assert layout == "gg"
    assert refused.startswith("R9 "), "the verifier's reason"
    assert list(programs) == [Attach.CONNECT4, Attach.CONNECT6]
    assert len(bpf_objects() - before) == 2, "what was loaded for others is gone"
    for descriptor in programs.values():
        os.close(descriptor)


@given(st.text("ab\n processed0", max_size=400))
def test_a_refusal_is_told_in_a_line_whatever_the_verifier_says(said: str) -> None:
    words = hook_programs._words(ProgramRejected(22, said))
    assert "\n" not in words
    assert len(words) <= hook_programs.WORDS_LIMIT
    assert not words.startswith("processed ")


def test_the_last_ones_reason_is_told() -> None:
    before = bpf_objects()
    tried: list[str] = []

    def building(layout: str) -> Mapping[str, bytes]:
        tried.append(layout)
        return build(layout)

    with pytest.raises(ProgramRejected, match="R9"):
        hook_programs.load(("bg", "bg", "gb"), building, "ms_test_")
    assert tried == ["bg", "gb"]
    assert bpf_objects() <= before


def test_a_second_put_exchanges_the_programs_of_the_same_links(sandbox: Sandbox) -> None:
    cgroup = os.open(sandbox.cgroup.path, os.O_RDONLY)
    links: dict[Attach, int] = {}
    _, first, refused = hook_programs.load(("gg",), build, "ms_test_")
    hook_programs.put(first, links, cgroup)
    assert refused == ""
    assert set(links) == {Attach.CONNECT4, Attach.CONNECT6}
    before = dict(links)
    _, second, _ = hook_programs.load(("gg",), build, "ms_test_")
    hook_programs.put(second, links, cgroup)
    assert links == before
    for descriptor in (cgroup, *links.values(), *first.values(), *second.values()):
        os.close(descriptor)


def test_programs_that_cannot_be_put_are_closed(tmp_path: Path) -> None:
    folder, before = os.open(tmp_path, os.O_RDONLY), bpf_objects()
    _, programs, _ = hook_programs.load(("gg",), build, "ms_test_")
    assert len(bpf_objects() - before) == 2
    with pytest.raises(OSError, match="attach"):
        hook_programs.put(programs, {}, folder)
    assert bpf_objects() <= before
    os.close(folder)


def test_what_another_layout_lacks_runs_no_longer(sandbox: Sandbox) -> None:
    cgroup, before = os.open(sandbox.cgroup.path, os.O_RDONLY), bpf_objects()
    attached = hook_programs.Attached()
    attached.exchange(hook_programs.load(("gg",), build, "ms_test_")[1], cgroup)
    link = attached.links[Attach.CONNECT4]
    assert set(attached.run_counts()) == {Attach.CONNECT4, Attach.CONNECT6}
    attached.exchange(hook_programs.load(("gg",), lambda _: {"CONNECT4": program()}, "ms_test_")[1], cgroup)
    assert attached.links == {Attach.CONNECT4: link}
    assert set(attached.run_counts()) == {Attach.CONNECT4}
    attached.detach()
    attached.detach()
    assert attached.links == attached.run_counts() == {}
    os.close(cgroup)
    assert bpf_objects() <= before
