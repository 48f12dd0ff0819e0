"""A key in a token, as an operator names it: a PKCS #11 URI (RFC 7512).

    pkcs11:token=CA;object=issuing?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/root/pin
           ───── which token, which object in it          ─── by which module, and where its PIN is

What is not understood is refused: a word that was overlooked could have meant another key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote_to_bytes

from mitmsec.core.model import Value

SCHEME = "pkcs11:"
OBJECT_CHARACTERS = 200
_TEXTS = {"token": "token", "serial": "serial", "manufacturer": "manufacturer", "model": "model", "object": "label"}
_ESCAPES = re.compile(r"%(?![0-9A-Fa-f]{2})")


class BadUri(ValueError):
    """The text says what is wrong with it, and never quotes a PIN."""


class TokenUri(Value, frozen=True):
    """Which key. Empty is: not said."""

    module: str
    token: str = ""
    serial: str = ""
    manufacturer: str = ""
    model: str = ""
    label: str = ""
    id: bytes = b""
    pin_file: str = ""

    @property
    def text(self) -> str:
        """As a URI again, without where its PIN is."""
        said = [(name, getattr(self, field)) for name, field in _TEXTS.items()]
        path = [f"{name}={_quoted(value)}" for name, value in said if value]
        path += [f"id={''.join(f'%{byte:02X}' for byte in self.id)}"] if self.id else []
        return f"{SCHEME}{';'.join(path)}?module-path={quote(self.module, safe='/')}"


def parse(text: str) -> TokenUri:
    """Raises BadUri."""
    if not text.startswith(SCHEME):
        raise BadUri(f"a PKCS #11 URI begins with {SCHEME}")
    path, _, query = text.removeprefix(SCHEME).partition("?")
    said, asked = _pairs(path.split(";")), _pairs(query.split("&"))
    if "pin-value" in asked:
        raise BadUri("pin-value: other programs can read a command line; leave it out, or name a file with pin-source")
    _refuse_unknown(said, {*_TEXTS, "id", "type"})
    _refuse_unknown(asked, {"module-path", "pin-source"})
    if said.get("type", b"private") != b"private":
        raise BadUri("type: what signs is a private key")
    fields = {field: _text(name, said[name]) for name, field in _TEXTS.items() if name in said}
    uri = TokenUri(
        **fields, id=said.get("id", b""), module=_module(asked), pin_file=_pin_file(asked.get("pin-source", b""))
    )
    _require_enough(uri)
    return uri


def _pairs(parts: Iterable[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not part:
            continue
        if not equals or not value:
            raise BadUri(f"{name or 'an attribute'} has no value")
        if name in found:
            raise BadUri(f"{name} is there twice")
        if _ESCAPES.search(value):
            raise BadUri(f"{name}: a % stands before two hexadecimal digits; as itself it is %25")
        found[name] = unquote_to_bytes(value)
    return found


def _refuse_unknown(said: Iterable[str], known: set[str]) -> None:
    for name in said:
        if name not in known:
            raise BadUri(f"{name!r} is not understood here; what is: {', '.join(sorted(known))}")


def _text(name: str, value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise BadUri(f"{name} is no UTF-8") from None
    if not text.isprintable() or len(text) > OBJECT_CHARACTERS:
        raise BadUri(f"{name}: at most {OBJECT_CHARACTERS} characters, all of them printable")
    return text


def _module(asked: dict[str, bytes]) -> str:
    module = _text("module-path", asked.get("module-path", b""))
    if not module.startswith("/"):
        raise BadUri("module-path has to name the module, a shared object, by its full path")
    return module


def _pin_file(source: bytes) -> str:
    """`file:` and a path, or a path. Programs that would print it are not run."""
    file = _text("pin-source", source).removeprefix("file:")
    file = file.removeprefix("//") if file.startswith("///") else file
    if file and not file.startswith("/"):
        raise BadUri("pin-source has to name a file by its full path: file:/PATH")
    return file


def _require_enough(uri: TokenUri) -> None:
    if not (uri.token or uri.serial):
        raise BadUri("which token? token=LABEL or serial=NUMBER says it")
    if not (uri.label or uri.id):
        raise BadUri("which key? object=LABEL or id=%HH… says it")
    if len(uri.id) > OBJECT_CHARACTERS:
        raise BadUri(f"id: at most {OBJECT_CHARACTERS} bytes")


def _quoted(text: str) -> str:
    return quote(text, safe="")
