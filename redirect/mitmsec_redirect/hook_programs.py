"""Loads the programs of a hook, as good as this kernel accepts them, and puts them on a cgroup.

A kernel may refuse what looks at its caller (Linux before 5.18), or what reads the names of an executable's path
(lockdown): so there are several layouts, the best first, and one that is accepted is so as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack

from mitmsec_redirect import bpf
from mitmsec_redirect.bpf import Attach, ProgramRejected, RunCount

NAME_LIMIT = 15  # BPF_OBJ_NAME_LEN, without its zero
WORDS_LIMIT = 160


def load[Layout: Hashable](
    layouts: Sequence[Layout], build: Callable[[Layout], Mapping[str, bytes]], prefix: str
) -> tuple[Layout, dict[Attach, int], str]:
    """The first of the layouts that is accepted, its programs' descriptors, and why the one before it was refused.

    Empty: it is the first. One that stands there twice is tried once. Raises what the last one raises.
    """
    *better, last = dict.fromkeys(layouts)
    refused = ""
    for layout in better:
        try:
            return layout, _load(build(layout), prefix), refused
        except ProgramRejected as error:
            refused = _words(error)
    return last, _load(build(last), prefix), refused


def _words(refusal: ProgramRejected) -> str:
    """The verifier's reason, in a line; what it has counted follows that."""
    lines = [line.strip() for line in str(refusal.strerror).splitlines()]
    return next((line for line in reversed(lines) if line and not line.startswith("processed ")), "")[:WORDS_LIMIT]


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


class Attached:
    """The programs of a hook on a cgroup, and the links that hold them there. Not thread-safe."""

    def __init__(self) -> None:
        self._programs: dict[Attach, int] = {}
        self._links: dict[Attach, int] = {}

    @property
    def links(self) -> Mapping[Attach, int]:
        """Their descriptors."""
        return self._links

    def exchange(self, programs: dict[Attach, int], cgroup_fd: int) -> None:
        """Put these in the place of those that there were, pinned or not. Raises as `put`."""
        put(programs, self._links, cgroup_fd)
        for program in self._programs.values():
            os.close(program)
        self._programs = programs
        for attach in self._links.keys() - programs.keys():
            bpf.detach(self._links[attach])
            os.close(self._links.pop(attach))

    def run_counts(self) -> Mapping[Attach, RunCount]:
        """How often each program ran while statistics were on (`bpf.enable_stats`)."""
        return {attach: bpf.run_count(fd) for attach, fd in self._programs.items()}

    def detach(self) -> None:
        """Nothing that is not pinned runs any more. Idempotent."""
        for descriptors in (self._links, self._programs):
            for descriptor in descriptors.values():
                os.close(descriptor)
            descriptors.clear()


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
