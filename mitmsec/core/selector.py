"""What conditions mean: path globs, programs, host patterns, ports, networks.

Each kind can say whether it accepts one thing (`matches`, `accepts`) and whether it accepts all that another accepts
(`covers`), which finds rules that can never match. `covers` errs to "no".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache

from mitmsec.core.model import Confidence, Fact, ParentProcess, Process
from mitmsec.core.names import parents
from mitmsec.core.rules import Application
from mitmsec.core.signers import common_name, is_of_a_subject
from mitmsec.core.units import CONTAINER_DIGITS, MACHINES_CONTAINER, WINDOWS_SERVICE, is_windows_service

# Stand-ins that no path has, for comparing a glob with a glob: they fit only a wildcard that accepts as much.
_ANY_RUN, _ANY_CHAR = "\x00", "\x01"

NO_PID = 0  # stands for the pid of a process that is not told, and of none
CGROUP_IS_READ = frozenset({Confidence.KERNEL, Confidence.TABLE})  # with the rest of the process

Ranges = tuple[tuple[int, int], ...]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


# --- programs ---------------------------------------------------------------------------------------------------------
def is_path(text: str) -> bool:
    """Whether an entry of a rule's `application` is a path glob, not a name."""
    return any(char in text for char in "/\\*?")


def path_matches(glob: str, path: str) -> bool:
    r"""`*` is any run of characters, separators too; `?` is one character; all else is itself.

    A glob with a drive letter or a backslash is for Windows: case does not count, and / and \ are the same.
    """
    is_windows = _is_windows(glob)
    return _glob(glob, is_windows=is_windows).fullmatch(_slashed(path) if is_windows else path) is not None


def path_covers(wide: str, narrow: str) -> bool:
    """Whether every path that `narrow` matches is also matched by `wide`."""
    return path_matches(wide, _standing_in(narrow))


def text_covers(wide: str, narrow: str) -> bool:
    """Whether every text that `narrow` matches is also matched by `wide`."""
    return text_matches(wide, _standing_in(narrow))


def _standing_in(glob: str) -> str:
    return glob.replace("*", _ANY_RUN).replace("?", _ANY_CHAR)


def users(process: Process) -> frozenset[str]:
    """As whom it runs, spelt in every way that a policy may: by name, and by number. Empty: not known."""
    return frozenset(
        who for who in (process.user, None if process.uid is None else str(process.uid)) if who is not None
    )


class Program:
    """An application, or a lone path glob, ready to be asked."""

    __slots__ = ("_application",)

    def __init__(self, application: Application) -> None:
        self._application = application

    @classmethod
    def of(cls, entry: str, applications: Iterable[Application]) -> Program:
        """What an entry of a rule's `application` stands for. Raises KeyError for a name that nobody has."""
        if is_path(entry):
            return cls(Application(name=entry, path=(entry,)))
        for application in applications:
            if application.name == entry:
                return cls(application)
        raise KeyError(entry)

    @property
    def asks_pid(self) -> bool:
        return bool(self._application.pid)

    def accepts(self, process: Process) -> bool:
        """What could not be read of `process` (None) fulfils no criterion."""
        return all(answer for _, answer in self.answers(process))

    def can_judge(self, process: Process) -> bool:
        """Whether `accepts` is the truth. False: what was read fulfils its criteria, and some could not be read."""
        answers = [answer for _, answer in self.answers(process)]
        return False in answers or None not in answers

    def answers(self, process: Process) -> Iterator[tuple[str, bool | None]]:
        """Each criterion that is given, by its key, and whether it holds; None: not known."""
        mine = self._application
        if mine.path:
            yield "path", self._path_answer(process)
        if mine.process_name:
            yield "process_name", _any_glob(mine.process_name, process.name)
        if mine.user:
            known = users(process)
            yield "user", None if not known else not known.isdisjoint(mine.user)
        if mine.sha256:
            yield "sha256", None if process.sha256 is None else process.sha256 in mine.sha256
        if mine.service:
            yield "service", _service_answer(process, mine.service)
        if mine.signer:
            yield "signer", _signer_answer(process, mine.signer)
        if mine.container:
            yield "container", _cgroup_answer(process, mine.container, process.container, container_matches)
        if mine.pid:
            yield "pid", self._pid_answer(process)

    def _path_answer(self, process: Process) -> bool | None:
        mine = self._application
        own = _path_answer_of(mine.path, process)
        if own or not mine.children:
            return own
        if process.parent is not None:
            inherited = _path_answer_of(mine.path, process.parent)
        else:  # none at all, if it was read: the first process, or one whose parent is in another pid namespace
            inherited = False if process.confidence is Confidence.KERNEL else None
        return True if inherited else None if None in (own, inherited) else False

    def _pid_answer(self, process: Process) -> bool | None:
        """Of parents beyond the last that is known nothing is asked: no process has all of them on record."""
        mine = self._application
        pids = lineage(process) if mine.children else (process.pid,)
        if not set(pids).isdisjoint(mine.pid):
            return True
        has_unread_parent = mine.children and process.parent is None and process.confidence is not Confidence.KERNEL
        return None if has_unread_parent or NO_PID in pids else False


def lineage(process: Process) -> tuple[int, ...]:
    """The pids of a process, its parent, its parent's parent and so on, as far as they are known."""
    pids, parent = [process.pid], process.parent
    while parent is not None:
        pids.append(parent.pid)
        parent = parent.parent
    return tuple(pids)


def _path_answer_of(globs: Sequence[str], process: Process | ParentProcess) -> bool | None:
    """A path that is only claimed is none of this machine's: that is known, and is no match."""
    return False if process.claimed_exe is not None else _any_glob(globs, process.exe)


def _any_glob(globs: Sequence[str], text: str | None) -> bool | None:
    """None: `text` is not known."""
    return None if text is None else any(path_matches(glob, text) for glob in globs)


def _cgroup_answer(
    process: Process, wanted: Sequence[str], text: str | None, matches: Callable[[str, str], bool]
) -> bool | None:
    """`text` is what the process's cgroup names, its unit or its container; where that was read, None is none."""
    if text is not None:
        return any(matches(one, text) for one in wanted)
    is_read = process.confidence in CGROUP_IS_READ or process.unit is not None or process.container is not None
    return False if is_read else None


def _service_answer(process: Process, wanted: Sequence[str]) -> bool | None:
    of_windows = [one for one in wanted if is_windows_service(one)]
    units = [one for one in wanted if not is_windows_service(one)]
    answers = {
        _cgroup_answer(process, units, process.unit, text_matches) if units else False,
        _windows_service_answer(process, of_windows) if of_windows else False,
    }
    return True if True in answers else None if None in answers else False


def _windows_service_answer(process: Process, wanted: Sequence[str]) -> bool | None:
    if Fact.SERVICES in process.unread:
        return None
    return any(service_matches(one, service) for one in wanted for service in process.services)


def _signer_answer(process: Process, wanted: Sequence[str]) -> bool | None:
    if process.signer is None:
        return None if Fact.SIGNER in process.unread else False
    return any(signer_matches(one, process.signer) for one in wanted)


def signer_matches(wanted: str, subject: str) -> bool:
    """A glob over the whole subject, or, where it has no `=`, over the common name."""
    text = subject if is_of_a_subject(wanted) else common_name(subject)
    return text is not None and text_matches(wanted, text)


def service_matches(wanted: str, service: str) -> bool:
    """`wanted` has `windows:` before it. Windows knows services by their names in any case."""
    return text_matches(wanted.removeprefix(WINDOWS_SERVICE).lower(), service.lower())


def text_matches(glob: str, text: str) -> bool:
    """`*` and `?` as in paths; all else is itself, the backslash of a unit's escapes too."""
    return _glob(glob, is_windows=False).fullmatch(text) is not None


def container_matches(wanted: str, container: str) -> bool:
    """`wanted`: the first digits of an id (12 at least), `runtime:` before them or not; else a glob over all of it.

    Digits name containers of the machine only: what a user's own manager calls one stands behind that one's name.
    """
    digits, whole = CONTAINER_DIGITS.fullmatch(wanted), MACHINES_CONTAINER.fullmatch(container)
    if digits and whole and whole["id"].startswith(digits["id"]):
        return digits["runtime"] in (None, whole["runtime"])
    return text_matches(wanted, container)


@lru_cache(maxsize=4096)
def _glob(glob: str, *, is_windows: bool) -> re.Pattern[str]:
    parts = {"*": ".*", "?": f"[^{_ANY_RUN}]"}
    # Runs of * are one: each would multiply the work of a match that fails.
    text = re.sub(r"\*+", "*", _slashed(glob) if is_windows else glob)
    return re.compile(
        "".join(parts.get(char) or re.escape(char) for char in text), re.DOTALL | (re.IGNORECASE if is_windows else 0)
    )


def _is_windows(glob: str) -> bool:
    return "\\" in glob or glob[1:2] == ":"


def _slashed(path: str) -> str:
    return path.replace("\\", "/")


# --- hosts ------------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=4096)
def host_patterns(name: str) -> tuple[str, ...]:
    """Every pattern that accepts `name`, so that looking hosts up is looking patterns up."""
    return (name, *(f"*.{parent}" for parent in parents(name)))


def host_covers(wide: Collection[str], narrow: str) -> bool:
    """Whether every name that the pattern `narrow` accepts is accepted by one of `wide`."""
    if narrow.startswith("*."):
        return narrow in wide or not set(host_patterns(narrow[2:])[1:]).isdisjoint(wide)
    return not set(host_patterns(narrow)).isdisjoint(wide)


# --- ports ------------------------------------------------------------------------------------------------------------
def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same ports in the fewest ranges, in order."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(high, out[-1][1]))
        else:
            out.append((low, high))
    return tuple(out)


def ports_accept(ranges: Ranges, port: int) -> bool:
    return any(low <= port <= high for low, high in ranges)


def ports_cover(wide: Ranges, narrow: Ranges) -> bool:
    """Both merged."""
    return all(any(low <= start and end <= high for low, high in wide) for start, end in narrow)


# --- addresses --------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address | None:
    """The address, or None for what is none: `Endpoint.address` is empty where explain was not told one."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def networks(written: Iterable[str]) -> tuple[Network, ...]:
    """The same addresses in the fewest networks. Raises ValueError."""
    parsed = [ipaddress.ip_network(text) for text in written]
    four = [network for network in parsed if isinstance(network, ipaddress.IPv4Network)]
    six = [network for network in parsed if isinstance(network, ipaddress.IPv6Network)]
    return (*ipaddress.collapse_addresses(four), *ipaddress.collapse_addresses(six))


def networks_accept(within: Iterable[Network], address: Address | None) -> bool:
    return address is not None and any(address in network for network in within)


def networks_cover(wide: Iterable[Network], narrow: Iterable[Network]) -> bool:
    return all(
        any(network.network_address in other and network.prefixlen >= other.prefixlen for other in wide)
        for network in narrow
    )
