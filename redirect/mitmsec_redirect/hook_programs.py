"""Loads the programs of a hook, as good as this kernel accepts them, and puts them on a cgroup.

A kernel may refuse what looks at its caller (Linux before 5.18), or what reads the names of an executable's path
(lockdown): so there are several layouts, the best first, and one that is accepted is so as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack

from mitmsec_redirect import bpf
from mitmsec_redirect.bpf import Attach, ProgramRejected

NAME_LIMIT = 15  # BPF_OBJ_NAME_LEN, without its zero


def load[Layout: Hashable](
    layouts: Sequence[Layout], build: Callable[[Layout], Mapping[str, bytes]], prefix: str
) -> tuple[Layout, dict[Attach, int]]:
    """The first of the layouts that is accepted, and its programs' descriptors. Raises what the last one raises.

    One that stands there twice is tried once.
    """
    *better, last = dict.fromkeys(layouts)
    for layout in better:
        try:
            return layout, _load(build(layout), prefix)
        except ProgramRejected:
            continue
    return last, _load(build(last), prefix)


def _load(codes: Mapping[str, bytes], prefix: str) -> dict[Attach, int]:
    """All of them, or none."""
    programs: dict[Attach, int] = {}
    try:
        for name, code in codes.items():
            programs[Attach[name]] = bpf.load_program(code, Attach[name], f"{prefix}{name.lower()}"[:NAME_LIMIT])
    except BaseException:
        for program in programs.values():
            os.close(program)
        raise
    return programs


def put(programs: Mapping[Attach, int], links: dict[Attach, int], cgroup_fd: int) -> None:
    """Let the cgroup run them from now on, the last attach type first; `links` are those that there are, and grow.

    A link's program is exchanged in one step. Raises OSError, EbpfUnavailable; then the programs are closed.
    """
    with ExitStack() as unused:
        for program in programs.values():
            unused.callback(os.close, program)
        for attach, program in sorted(programs.items(), reverse=True):
            if attach in links:
                bpf.replace_program(links[attach], program)
            else:
                links[attach] = bpf.attach_to_cgroup(program, cgroup_fd, attach)
        unused.pop_all()
