"""What the applications of a policy name that is not on this machine: a selector that matches nothing is a mistake.

Only what is certain is said. A unit or a container may start at any time and a user be known elsewhere only, so those
of them that can be looked up without asking anybody are: files, users, and processes by their number.
"""

from __future__ import annotations

import os
import pwd
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from mitmsec.core.policy import Policy
from mitmsec.core.rules import Application
from mitmsec.core.selector import path_matches
from mitmsec.core.units import is_windows_service
from mitmsec.service.terminal import shown

FILES_LOOKED_AT = 20_000  # for one glob: a tenth of a second; in a larger tree it may be that something matches
_WILDCARD = re.compile(r"[*?]")


def unmatched(policy: Policy) -> list[str]:
    """A sentence for each application that no program can belong to as things are."""
    return [
        f'application "{shown(application.name)}" names {what}'
        for application in policy.applications
        for what in _flaws(application)
    ]


def _flaws(application: Application) -> Iterator[str]:
    checks: list[tuple[str, Sequence[object], Callable[..., bool]]] = [
        ("no file that is there", application.path, _may_be_a_file),
        ("no user that is known here", application.user, _is_user),
        ("no process that runs", application.pid, _runs),
        ("a signer, and programs have none but on Windows", application.signer, _is_on_windows),
        ("services of Windows only", application.service, _may_be_a_service),
    ]
    for what, named, is_there in checks:
        if named and not any(map(is_there, named)):
            yield what


def _may_be_a_file(glob: str) -> bool:
    wildcard = _WILDCARD.search(glob)
    if wildcard is None:
        return os.path.isfile(glob)
    folder = glob[: wildcard.start()].rpartition("/")[0]
    if not folder:
        return True  # anywhere
    looked_at = 0
    for inner, _, files in os.walk(folder):
        if any(path_matches(glob, os.path.join(inner, name)) for name in files):
            return True
        looked_at += 1 + len(files)  # folders without files cost time too
        if looked_at > FILES_LOOKED_AT:
            return True
    return False


def _is_user(name: str) -> bool:
    """A number stands for a user without a name."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return name.isdecimal()
    return True


def _is_on_windows(_: str) -> bool:
    return sys.platform == "win32"


def _may_be_a_service(name: str) -> bool:
    return _is_on_windows(name) or not is_windows_service(name)


def _runs(pid: int) -> bool:
    """Whoever it is: a signal that is not sent asks only whether it could be."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
