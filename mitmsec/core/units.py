"""Units, containers and services as people write them: what could name one, and what never can.

Processes have them as mitmsec_redirect.cgroup_path tells: `nginx.service`, `docker:<64 digits>`; what a user's own
manager names stands behind that manager's name, `user@1000.service/podman:<64 digits>`. Services of Windows are written
with `windows:` before their name, as no unit is.
"""

from __future__ import annotations

import re

TYPES = ("service", "scope", "socket", "mount", "swap")  # of units that programs run in
_UNIT = re.compile(rf"[A-Za-z0-9:_.\\@/-]+\.(?:{'|'.join(TYPES)})")
BY_ID = frozenset({"containerd", "crio", "docker", "kubernetes", "podman"})  # runtimes whose containers have 64 digits
_RUNTIME = r"(?P<runtime>(?!lxc:|machine:)[a-z-]+)"  # of those two containers have names that people choose
CONTAINER_DIGITS = re.compile(rf"(?:{_RUNTIME}:)?(?P<id>[0-9a-f]{{12,64}})")
MACHINES_CONTAINER = re.compile(rf"{_RUNTIME}:(?P<id>[0-9a-f]{{64}})")


WINDOWS_SERVICE = "windows:"
SERVICE_NAME_LIMIT = 256  # CreateService


def is_glob(text: str) -> bool:
    return "*" in text or "?" in text


def is_windows_service(text: str) -> bool:
    """Whether this is about services of Windows, not about units."""
    return text.startswith(WINDOWS_SERVICE)


def windows_services(text: str | None) -> tuple[str, ...]:
    """The service of Windows that is written here, as a process has it; none, where this is a unit."""
    return (text.removeprefix(WINDOWS_SERVICE),) if text is not None and is_windows_service(text) else ()


def service_mistake(text: str) -> str | None:
    """Why no process has this unit or runs this service of Windows; None: one may."""
    if not is_windows_service(text):
        return unit_mistake(text)
    name = text.removeprefix(WINDOWS_SERVICE)
    if 0 < len(name) <= SERVICE_NAME_LIMIT and not set(name) & {"/", "\\"}:
        return None
    return f'"{text}" names no service: a name has 1 to {SERVICE_NAME_LIMIT} characters, / and \\ not among them'


def unit_mistake(text: str) -> str | None:
    """Why no process has this unit; None: one may have."""
    if _UNIT.fullmatch(text):
        return None
    meant = "" if "." in text else f'; did you mean "{text}.service"?'
    return f'"{text}" is no unit that programs run in: those end in {_listed([f".{kind}" for kind in TYPES])}{meant}'


def container_mistake(text: str) -> str | None:
    """Why no process has this container; None: one may have."""
    runtime, colon, name = text.rpartition("/")[2].partition(":")
    if not runtime or not colon or not name:
        return f'"{text}" is no container: write "runtime:id", such as "docker:" and 64 digits'
    if runtime in BY_ID and not MACHINES_CONTAINER.fullmatch(f"{runtime}:{name}"):
        return f'containers of {runtime} are known by an id of 64 digits, not by a name: "{name}" is none'
    return None


def container_pattern_mistake(text: str) -> str | None:
    """Why no container is meant by this; None: one may be. Digits are wanted in lower case."""
    if is_glob(text) or CONTAINER_DIGITS.fullmatch(text):
        return None
    if ":" in text and container_mistake(text) is None:
        return None
    return f'"{text}" names no container: write 12 or more digits of its id, or a glob over "runtime:id"'


def container_pattern(text: str) -> str:
    """Digits in lower case, as ids are told; anything else as it is."""
    return text.lower() if CONTAINER_DIGITS.fullmatch(text.lower()) else text


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
