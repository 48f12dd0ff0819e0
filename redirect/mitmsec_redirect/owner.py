"""The owner of a connection as it is told: a process, its texts, and a hash that may still be on its way."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from mitmsec.core.model import Confidence, ParentProcess, Process, Value

if TYPE_CHECKING:  # Windows has none of it
    from mitmsec_redirect.proc_files import ExePath

SURENESS: Final = (Confidence.UNKNOWN, Confidence.INFERRED, Confidence.TABLE, Confidence.KERNEL)


class Owner(Value, frozen=True):
    """The process of a connection. `sha256` is its executable's, still to come or in vain; None: nothing is to come.

    `signature` likewise, Windows'; whoever asks for the process once more when it is done is told the signer.
    """

    process: Process
    sha256: Future[str | None] | None = None
    signature: Future[Any] | None = None

    @property
    def awaited(self) -> tuple[Future[Any], ...]:
        """What of it is on its way."""
        return tuple(one for one in (self.sha256, self.signature) if one is not None and not one.done())

    def hashed(self) -> Process:
        """The process with its hash; call once that is done."""
        if self.sha256 is None:
            return self.process
        return msgspec.structs.replace(self.process, sha256=self.sha256.result())


def settled(owner: Owner) -> Owner:
    """`owner` with its hash instead of the Future, if that has brought one."""
    if owner.sha256 is None or not owner.sha256.done() or owner.sha256.result() is None:
        return owner
    return replace(owner, process=owner.hashed(), sha256=None)


def weaker(one: Confidence, other: Confidence) -> Confidence:
    """What holds where both have to."""
    return min(one, other, key=SURENESS.index)


def unhashed() -> Future[str | None]:
    result: Future[str | None] = Future()
    result.set_result(None)
    return result


def chained(processes: Sequence[tuple[int, ExePath]]) -> ParentProcess | None:
    """The first, its parent the next, and so on."""
    outer: ParentProcess | None = None
    for pid, exe in reversed(processes):
        outer = ParentProcess(pid=pid, exe=displayed(exe.path), claimed_exe=displayed(exe.claimed), parent=outer)
    return outer


def displayed(path: str | None) -> str | None:
    """As text that can be written: bytes of a name that are no UTF-8 become `\\xff`."""
    return None if path is None else path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def user_name(uid: int) -> str:
    """The user's name, or the number as text where there is none. Not on Windows."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def rfc3339(unix_s: float) -> str:
    """UTC, to the hundredth of a second, which is what the kernel knows about a start."""
    whole = datetime.fromtimestamp(unix_s, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{whole.microsecond // 10_000:02d}Z"
