"""The rows of the redirect benchmark: how each leads its clients, and where those call.

A backend of mitmsec is a row as soon as `mitmsec run` offers it by `--backend`; until then its row says why not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import peers
from benchmarks.cgroups import Cgroup
from benchmarks.host import CLIENT_ADDRESS, ORIGIN_ADDRESS, run
from benchmarks.redirect.figures import (
    BARE,
    BESIDE,
    DIRECT,
    EXPLICIT,
    FLOOR,
    HOOK,
    LOCAL,
    NFTABLES,
    TRANSPARENT,
    WINDIVERT,
)
from benchmarks.variants import Variant

ORIGIN_PORT = 80
NAMES = (DIRECT, EXPLICIT, BARE, HOOK, WINDIVERT, FLOOR, NFTABLES, TRANSPARENT, LOCAL)
LEADING = (DIRECT, HOOK, WINDIVERT, NFTABLES, TRANSPARENT, LOCAL)
"""Rows that stand beside bystanders; beside direct nobody is led, which is what the others are compared with."""
_PORTS = {EXPLICIT: 8091, BARE: 8092}
_BYPASS = 'version = 1\n\n[defaults]\naction = "bypass"\n'
_UNREAD = ("--ignore-hosts", ".*")  # mitmdump relays every connection without looking into it


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a row may need of the run."""

    folder: Path
    cgroup: Cgroup
    origin_ca: Path
    mitmdump: Path


class Absent(Exception):
    """This row cannot be made here; the message says why."""


def address(name: str) -> tuple[str, int]:
    """Where the clients of the row call for HTTP: the origin, or a proxy that is called by its own address."""
    own = _PORTS.get(name)
    return (ORIGIN_ADDRESS, ORIGIN_PORT) if own is None else (CLIENT_ADDRESS, own)


def made(name: str, around: Surroundings) -> Variant:
    """The row's variant. Raises `Absent`, `Failed`."""
    return _MAKERS[name](around)


def bystander(name: str, leading: Variant) -> Variant:
    """Clients that the backend does not select; where it selects by name, in the same cgroup as those it does."""
    return Variant(BESIDE + name, "", clients=leading.clients)


def offered(help_text: str, backend: str) -> bool:
    """Whether `mitmsec run --help` offers the backend."""
    _, option, rest = help_text.partition("--backend")
    return bool(option) and backend in rest.partition("\n  --")[0]


def _direct(around: Surroundings) -> Variant:
    return Variant(DIRECT, "")


def _explicit(around: Surroundings) -> Variant:
    return _proxy(EXPLICIT, "gate", str(_policy(around.folder)), str(around.folder / "log"))


def _bare(around: Surroundings) -> Variant:
    return _proxy(BARE, "bare")


def _proxy(name: str, kind: str, *places: str) -> Variant:
    program = (sys.executable, "-m", "benchmarks.redirect.explicit", kind)
    return Variant(name, "", proxy=(*program, str(_PORTS[name]), ORIGIN_ADDRESS, str(ORIGIN_PORT), *places))


def _floor(around: Surroundings) -> Variant:
    return Variant(FLOOR, "", proxy=(sys.executable, "-m", "benchmarks.redirect.floor"))


def _ours(name: str) -> Callable[[Surroundings], Variant]:
    backend = name.removeprefix("mitmsec ")

    def make(around: Surroundings) -> Variant:
        mitmsec = (sys.executable, "-m", "mitmsec", "run")
        choice: tuple[str, ...] = ()
        if offered(run([*mitmsec, "--help"]), backend):
            choice = ("--backend", backend)
        elif backend != "connect_hook":  # which is what a run takes that offers no choice
            raise Absent("`mitmsec run` offers no such backend")
        places = ("--state", str(around.folder / "state"), "--policy", str(_policy(around.folder)))
        return Variant(name, "", (*mitmsec, *places, *choice, "--"))

    return make


def _transparent(around: Surroundings) -> Variant:
    return peers.mitmdump_transparent(_mitmdump(around), around.folder, around.origin_ca, *_UNREAD)


def _local(around: Surroundings) -> Variant:
    return peers.mitmdump_local(_mitmdump(around), around.folder, around.origin_ca, around.cgroup, *_UNREAD)


def _mitmdump(around: Surroundings) -> Path:
    if not around.mitmdump.is_file():
        raise Absent("mitmdump could not be installed")
    return around.mitmdump


def _policy(folder: Path) -> Path:
    path = folder / "policy.toml"
    path.write_text(_BYPASS)
    return path


_MAKERS: Mapping[str, Callable[[Surroundings], Variant]] = {
    DIRECT: _direct,
    EXPLICIT: _explicit,
    BARE: _bare,
    HOOK: _ours(HOOK),
    FLOOR: _floor,
    WINDIVERT: _ours(WINDIVERT),
    NFTABLES: _ours(NFTABLES),
    TRANSPARENT: _transparent,
    LOCAL: _local,
}
