"""A token of PKCS #11: its module loaded, found and logged in to. Only processes whose CA is in one import this.

    module ── root's alone, and all folders above it ──► C_Initialize, with the environment that root has written down
           ── the one token that is meant ──► C_Login ──► session

A module is code: it runs with all that the signer may do, so who could write one could have the CA.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence

import pkcs11
import pkcs11._pkcs11  # pkcs11 has it only with the first module, when a user may be kept from where it lies
from pkcs11 import exceptions

from mitmsec.core.token_module import TokenModule
from mitmsec_certs.ca_folder import KeystoreRefused
from mitmsec_certs.token_uri import TokenUri

PIN_ERRORS = (exceptions.PinIncorrect, exceptions.PinLocked, exceptions.PinExpired)
PIN_FORM_ERRORS = (exceptions.PinInvalid, exceptions.PinLenRange)


class TokenRefused(KeystoreRefused):
    """The token, its module or the key in it cannot be used. The text says which and why."""


class PinRefused(TokenRefused):
    """By the token, which counts: trying again and again would lock it."""


def session(uri: TokenUri, pin: str, module: TokenModule, *, writing: bool = False) -> pkcs11.Session:
    """Logged in to the token of `uri`. It lives as long as the result. Raises TokenRefused, PinRefused."""
    require_roots(module.path)
    with failing(uri):
        with _environment(module.environment):
            library = pkcs11.lib(module.path)
        found = [token for token in library.get_tokens() if _is_meant(uri, token)]
        token = _only(uri, found)
        try:
            return token.open(rw=writing, user_pin=pin)
        except exceptions.UserAlreadyLoggedIn:  # this process is, by an earlier session
            return token.open(rw=writing)


@contextlib.contextmanager
def failing(uri: TokenUri, error: type[TokenRefused] = TokenRefused) -> Iterator[None]:
    """What the module says is wrong, in words, as `error`; what it says of the PIN, as PinRefused."""
    try:
        yield
    except PIN_ERRORS as said:
        raise PinRefused(f"{uri.text}: the token refuses the PIN ({_named(said)})") from None
    except PIN_FORM_ERRORS as said:
        raise PinRefused(f"{uri.text}: for this token that can be no PIN ({_named(said)})") from None
    except RuntimeError as said:  # also what the library says of a file that is no module
        raise error(f"{uri.text}: the module fails ({_named(said)})") from None


def require_roots(path: str) -> None:
    """Raises TokenRefused for a module that others than root could have written, or could put another in place of."""
    if os.path.realpath(path) != path:
        raise TokenRefused(f"{path}: there is a link on the way to the module")
    if not os.path.isfile(path):
        raise TokenRefused(f"{path}: no module there")
    place = path
    while True:
        status = os.lstat(place)
        if status.st_uid != 0 or status.st_mode & 0o022:
            what = f"owned by uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
            raise TokenRefused(f"{place}: {what}: others than root could put a module of theirs there")
        if place == "/":
            return
        place = os.path.dirname(place)


def _is_meant(uri: TokenUri, token: pkcs11.Token) -> bool:
    said = (
        (uri.token, token.label),
        (uri.serial, token.serial.decode(errors="replace")),
        (uri.manufacturer, token.manufacturer_id),
        (uri.model, token.model),
    )
    return all(wanted in ("", found) for wanted, found in said)


def _only(uri: TokenUri, found: Sequence[pkcs11.Token]) -> pkcs11.Token:
    if len(found) == 1:
        return found[0]
    if found:
        raise TokenRefused(f"{uri.text}: {len(found)} tokens are called so; serial=NUMBER tells them apart")
    raise TokenRefused(f"{uri.text}: the module knows no such token: it is not there, or hidden from the signer")


@contextlib.contextmanager
def _environment(said: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Exactly this, so that a module finds the same here as in the signer."""
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(said)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _named(said: BaseException) -> str:
    """PKCS #11's own name of it, as its manual has it, and what there is more."""
    words = str(said)
    return f"{type(said).__name__}: {words}" if words else type(said).__name__
