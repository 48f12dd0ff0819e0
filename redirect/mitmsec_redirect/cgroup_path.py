"""Which systemd unit and which container a cgroup's path names, and who vouches for that.

    /system.slice/nginx.service                                              unit nginx.service
    /system.slice/docker-<id>.scope                                          container docker:<id>
    /kubepods.slice/…-pod<uid>.slice/cri-containerd-<id>.scope/init          container containerd:<id>
    /user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service    unit user@1000.service/nginx.service

Cgroups below a delegated one are made by whoever it was delegated to, under any name. So only the outermost unit and
the outermost container count; what a user's own manager (user@UID.service) names stands behind that manager's name, and
can never be mistaken for a unit or container of the machine. Names are as `systemctl` and `docker ps --no-trunc` print
them: a unit keeps its escapes (`\\x2d`), only the underscore with which systemd guards a cgroup's name goes.
"""

from __future__ import annotations

import re

from mitmsec.core.model import Value

DEPTH_LIMIT = 64  # of what is looked at; what counts stands at the front
NAME_LIMIT = 255  # of a cgroup's name, and of what we tell of it
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(?:service|scope|socket|mount|swap)")
_SLICE = re.compile(r"(?:-|[A-Za-z0-9:_.\\@]+(?:-[A-Za-z0-9:_.\\@]+)*)\.slice")
_USER_MANAGER = re.compile(r"user@\d+\.service")
_ID = r"(?P<id>[0-9a-f]{64})"
_RUNTIMES = {  # the word before the id of a scope, or the folder that the id lies in
    "docker": "docker",
    "libpod": "podman",
    "libpod_parent": "podman",
    "cri-containerd": "containerd",
    "crio": "crio",
}
_SCOPE = re.compile(rf"(?P<runtime>docker|libpod|cri-containerd|crio)-{_ID}(?:\.scope)?")
_COLONS = re.compile(rf"[^:]*:(?P<runtime>[a-z-]+):{_ID}")  # runc without systemd's scopes: slice:prefix:id
_BARE = re.compile(_ID)
_POD = re.compile(r"(?:kubepods.*-)?pod[0-9a-f_-]{32,36}(?:\.slice)?")
_LXC = re.compile(r"lxc\.payload\.(?P<id>[A-Za-z0-9._-]+)")
_MACHINE = re.compile(r"(?:machine-(?P<scope>.+)\.scope|systemd-nspawn@(?P<service>.+)\.service)")


class CgroupNames(Value, frozen=True):
    """None: the path names none."""

    unit: str | None = None
    container: str | None = None  # runtime:id


def path_in(text: str) -> str | None:
    """The path that says most, from /proc/PID/cgroup (cgroups(7)): cgroup2's, or in mixed layouts systemd's own.

    Without systemd, any hierarchy's that is not the root. None: the text is no such file.
    """
    paths: dict[str, str] = {}
    for line in text.split("\n"):
        number, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if number.isdecimal() and separator and path.startswith("/"):
            paths.setdefault("" if number == "0" else controllers, path)
    preferred = [paths[name] for name in ("", "name=systemd") if name in paths]
    return next((path for path in [*preferred, *paths.values()] if path != "/"), "/" if paths else None)


def names_of(path: str) -> CgroupNames:
    """What the path names. Any text is a path."""
    parts = [part.removeprefix("_") for part in path.split("/") if part not in ("", ".", "..")][:DEPTH_LIMIT]
    if any(len(part) > NAME_LIMIT for part in parts):
        return CgroupNames()
    at = next((index for index, part in enumerate(parts) if not _SLICE.fullmatch(part)), len(parts))
    if at < len(parts) and _USER_MANAGER.fullmatch(parts[at]):
        manager, inner = parts[at], names_of("/".join(parts[at + 1 :]))
        return CgroupNames(
            unit=f"{manager}/{inner.unit}" if inner.unit else manager,
            container=f"{manager}/{inner.container}" if inner.container else None,
        )
    unit = parts[at] if at < len(parts) and _UNIT.fullmatch(parts[at]) else None
    return CgroupNames(unit=unit, container=_container(parts))


def _container(parts: list[str]) -> str | None:
    """The outermost."""
    for index, part in enumerate(parts):
        folder = parts[index - 1] if index else ""
        if scope := _SCOPE.fullmatch(part) or _COLONS.fullmatch(part):
            runtime = scope["runtime"]
            return f"{_RUNTIMES.get(runtime, runtime)}:{scope['id']}"
        if (bare := _BARE.fullmatch(part)) and folder in _RUNTIMES:
            return f"{_RUNTIMES[folder]}:{bare['id']}"
        if bare and _POD.fullmatch(folder):
            return f"kubernetes:{bare['id']}"
        if lxc := _LXC.fullmatch(part):
            return f"lxc:{lxc['id']}"
        if folder == "lxc":
            return f"lxc:{part}"
        if machine := _MACHINE.fullmatch(part):
            return f"machine:{machine['scope'] or machine['service']}"
    return None
