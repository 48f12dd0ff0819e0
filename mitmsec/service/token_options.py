"""`--pkcs11` and what belongs to it: which key in which token, what its module needs, and the PIN.

The PIN comes from a terminal or from a file that is root's alone: never from an argument or a variable.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec

from mitmsec.core.model import Value
from mitmsec.core.token_module import TokenModule
from mitmsec.service.options import EXIT_USAGE, fail
from mitmsec_certs.token_reference import PIN_CHARACTERS, TokenReference, pin_flaw
from mitmsec_certs.token_uri import BadUri, parse


class TokenOrder(Value, frozen=True):
    """A key in a token, as it was ordered."""

    reference: TokenReference
    module: TokenModule


def token_options[Command: Callable[..., Any]](command: Command) -> Command:
    """`--pkcs11`, `--pkcs11-path` and `--pkcs11-env`, as `pkcs11`, `pkcs11_path` and `pkcs11_env`."""
    by_uri = click.option(
        "--pkcs11",
        metavar="URI",
        help="The issuing key is in a token (RFC 7512): pkcs11:token=…;object=…?module-path=/…. Its PIN is asked for,"
        " or read from &pin-source=file:/….",
    )
    by_path = click.option(
        "--pkcs11-path",
        multiple=True,
        metavar="PATH",
        help="What the module has to read beside /usr: its configuration, its tokens. Repeatable.",
    )
    by_environment = click.option(
        "--pkcs11-env",
        multiple=True,
        metavar="NAME=VALUE",
        help="What the module is told by the environment. Repeatable.",
    )
    return by_uri(by_path(by_environment(command)))


def token_order(uri: str | None, paths: tuple[str, ...], environment: tuple[str, ...]) -> TokenOrder | None:
    """What these options order, with the PIN; None for no token. Or the end of the command."""
    if uri is None:
        if paths or environment:
            raise click.UsageError("--pkcs11-path and --pkcs11-env belong to --pkcs11")
        return None
    try:
        said = parse(uri)
    except BadUri as error:
        fail(f"--pkcs11: {error}", "", EXIT_USAGE)
    module = TokenModule(
        path=os.path.realpath(said.module), shows=tuple(map(_shown, paths)), environment=tuple(map(_pair, environment))
    )
    real = msgspec.structs.replace(said, module=module.path)
    return TokenOrder(
        reference=TokenReference(
            uri=real.text, pin=pin_of_token(said.pin_file, f"the token {said.token or said.serial}")
        ),
        module=module,
    )


def _shown(path: str) -> str:
    real = os.path.realpath(path)
    if not os.path.isabs(path) or not os.path.exists(real):
        fail(f"--pkcs11-path: {path}: not there, or not a full path", "", EXIT_USAGE)
    if real == "/" or real.startswith(("/proc", "/sys", "/dev")):
        fail(f"--pkcs11-path: {path}: the signer is kept out of that", "", EXIT_USAGE)
    return real


def _pair(said: str) -> tuple[str, str]:
    name, equals, value = said.partition("=")
    if not name or not equals:
        fail(f"--pkcs11-env: {name!r} has no value: NAME=VALUE", "", EXIT_USAGE)
    return name, value


def pin_source_option[Command: Callable[..., Any]](command: Command) -> Command:
    """`--pin-source`, as `pin_source`."""
    return click.option(
        "--pin-source",
        metavar="FILE",
        help="Read the PIN from the first line of FILE, which is root's alone. Default: ask.",
    )(command)


def pin_of_token(file: str | None, what: str) -> str:
    """The PIN of `what`, from `file` or whoever sits at the terminal, or the end of the command."""
    if file:
        pin = _from_file(file)
    elif has_terminal():
        pin = click.prompt(f"PIN of {what}", hide_input=True, err=True)
    else:
        remedy = "name a file with it, which only root may read: pin-source=file:/PATH in a URI, --pin-source else"
        fail(f"the PIN of {what} is needed, and nobody is here to be asked", remedy, EXIT_USAGE)
    if (flaw := pin_flaw(pin)) is not None:
        fail(flaw, "", EXIT_USAGE)
    return pin


def has_terminal() -> bool:
    """Whether anybody can be asked."""
    return sys.stdin.isatty()


def _from_file(path: str) -> str:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o077:
                remedy = f"change the PIN, and keep it in a file of root's alone: chmod 600 {path}"
                fail(f"pin-source: {path}: others than root can read or write it", remedy, EXIT_USAGE)
            return file.readline(4 * PIN_CHARACTERS + 2).decode().rstrip("\r\n")
    except OSError as error:
        fail(f"pin-source: {path}: {error.strerror}", "name a file with the PIN in its first line", EXIT_USAGE)
    except UnicodeDecodeError:
        fail(f"pin-source: {path}: it is not UTF-8", "", EXIT_USAGE)
