"""What `policy explain` is asked, in the words of a command line: each kind of word, and what its mistakes are."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from typing import Any

import click

from mitmsec.core.model import Endpoint
from mitmsec.core.names import is_address, written_name
from mitmsec.core.sniff import WITH_HELLO, WITH_NAME, Protocol, Shown
from mitmsec.core.units import container_mistake, service_mistake
from mitmsec.service.terminal import shown

SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
NOTES = "mitmsec.notes"
MOMENT = click.DateTime(["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M%z", "%Y-%m-%dT%H:%M:%S%z"])


class HostName(click.ParamType[str]):
    """A host name in any spelling; the comparable one comes out."""

    name = "host"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if is_address(value):
            self.fail(f"{value} is an address: give it with --address, and no --host")
        try:
            return written_name(value)
        except ValueError as error:
            self.fail(str(error))


class IpAddress(click.ParamType[str]):
    """An IP address; its canonical text comes out."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return Endpoint.of(value, 0).address
        except ValueError:
            self.fail(f'"{value}" is not an IP address; a name is given with --host')


class ProgramPath(click.ParamType[str]):
    """The whole path of a program, of this machine or another. A lone name is looked for here, as a shell does."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value.startswith(("/", "\\")) or value[1:3] in (":\\", ":/"):
            return str(value)
        found: str | None = shutil.which(value)
        if found is None:
            self.fail(f'no program "{value}" is found here; give its whole path, such as /usr/bin/curl')
        path = os.path.realpath(found)  # what the kernel calls it, and so what rules are asked about
        _note(ctx, f"{value} is {path} here")
        return path


class UserName(click.ParamType[str]):
    """Whom a program runs as, as rules are asked about it: the name, or the number where it has none."""

    name = "user"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value.strip():
            self.fail("a user is wanted: a name, or the number of one that has none")
        name = value if value.isdecimal() else None
        with contextlib.suppress(ImportError, KeyError, OverflowError, ValueError):  # known on Unix; no endless number
            import pwd

            name = (pwd.getpwuid(int(value)) if value.isdecimal() else pwd.getpwnam(value)).pw_name
        if name is None:
            _note(ctx, f'there is no user "{shown(value)}" here; this is what a machine that has one would do')
        return name or str(value)


class Sha256(click.ParamType[str]):
    """A SHA-256 in hexadecimal digits; it comes out in lower case."""

    name = "sha256"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not SHA256.fullmatch(value):
            self.fail("64 hexadecimal digits are wanted, as sha256sum prints them")
        return str(value).lower()


class Named(click.ParamType[str]):
    """A unit (or `windows:` and a service), or a container, in full. `mistake` says why it is none."""

    def __init__(self, name: str, mistake: Callable[[str], str | None]) -> None:
        self.name, self._mistake = name, mistake

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if (why := self._mistake(value)) is not None:
            self.fail(why)
        return str(value)


UNIT, CONTAINER = Named("unit", service_mistake), Named("container", container_mistake)


def _note(ctx: click.Context | None, words: str) -> None:
    """To be said once everything that was given is known to be right."""
    if ctx is not None:
        ctx.meta.setdefault(NOTES, []).append(words)


def shown_by(
    host: str | None, protocol: str | None, alpn: tuple[str, ...], ja4: str | None, ech: bool | None = None
) -> Shown:
    """What the first bytes of the connection tell that is asked about; ends the command where none can tell it."""
    told = Shown.of(host, None if protocol is None else Protocol(protocol), alpn, ja4, ech)
    if told.protocol not in WITH_HELLO and (alpn or ja4 or ech):
        raise click.UsageError("--alpn, --ja4 and --ech are TLS's: leave --protocol out")
    if host is not None and told.protocol not in WITH_NAME:
        raise click.UsageError(f"{protocol} shows no name: leave --host out")
    return told
