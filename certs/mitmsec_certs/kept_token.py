"""From the file that names a key in a token (STATE/ca/issuing.key) to that key.

    issuing.key   the signer's: which key, its PIN       modules.json   root's: which modules may be loaded at all
          └───────────────► token_key ◄───────────────────────┘

PKCS #11's library is loaded with the first such key: a CA whose key is in a file never has it.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from mitmsec.core.token_module import FILE, TokenModule, TokenModules
from mitmsec_certs import ca_folder, token_reference
from mitmsec_certs.authority import CaKey
from mitmsec_certs.ca_folder import NEXT, KeystoreRefused
from mitmsec_certs.token_reference import BadReference, TokenReference
from mitmsec_certs.token_uri import BadUri, TokenUri, parse

SUFFIX_BYTES = 4  # of the label of a key that follows another


def reference(path: Path, secret: bytes | None) -> TokenReference | None:
    """What the file at `path` names; None where that is no key in a token. Raises KeystoreRefused."""
    data = ca_folder.content(path, private=True)
    if not token_reference.is_reference(data):
        return None
    try:
        return token_reference.read(data, secret)
    except BadReference as error:
        raise ca_folder.refused(path, str(error)) from None


def uri_in(path: Path) -> str:
    """Which key in a token the file at `path` names; empty where none. Raises KeystoreRefused."""
    data = ca_folder.content(path, private=True)
    return token_reference.uri_of(data) if token_reference.is_reference(data) else ""


def is_sealed(data: bytes) -> bool:
    """Whether `data` names a key in a token, and its PIN is sealed."""
    with contextlib.suppress(BadReference):
        return token_reference.is_reference(data) and token_reference.is_sealed(data)
    return False


def write(path: Path, named: TokenReference, secret: bytes | None) -> None:
    """Raises OSError."""
    ca_folder.write(path, token_reference.written(named, secret), 0o600)


def opened(path: Path, named: TokenReference, secret: bytes | None) -> CaKey:
    """The key that the file at `path` names. A PIN that the token refuses is not tried again.

    Raises KeystoreRefused.
    """
    from mitmsec_certs import token_key, token_session

    uri = _parsed(path, named)
    if named.pin_refused:
        raise KeystoreRefused(f"{uri.text}: the token has refused the PIN before; `mitmsec ca pin` tells the right one")
    try:
        return token_key.opened(uri, named.pin, _module(path, uri))
    except token_session.PinRefused:
        write(path, msgspec.structs.replace(named, pin_refused=True), secret)
        raise


def made(path: Path, named: TokenReference) -> CaKey:
    """The key that `named` names, or one that is made in the token. Raises KeystoreRefused."""
    from mitmsec_certs import token_key

    return _by(token_key.found_or_made, path, named)


def tried(path: Path, named: TokenReference) -> CaKey:
    """The key that `named` names, which is there; nothing is remembered. Raises KeystoreRefused."""
    from mitmsec_certs import token_key

    return _by(token_key.opened, path, named)


def following(named: TokenReference) -> TokenReference:
    """For a new key beside the one that is `named`, in the same token: no object of either name is mistaken for it."""
    uri = parse(named.uri)
    stem, _, suffix = uri.label.rpartition("-")
    label = stem if len(suffix) == 2 * SUFFIX_BYTES and stem else uri.label
    new = msgspec.structs.replace(uri, label=f"{label or 'mitmsec'}-{secrets.token_hex(SUFFIX_BYTES)}", id=b"")
    return msgspec.structs.replace(named, uri=new.text)


def _by(work: Callable[[TokenUri, str, TokenModule], CaKey], path: Path, named: TokenReference) -> CaKey:
    uri = _parsed(path, named)
    return work(uri, named.pin, _module(path, uri))


def _parsed(path: Path, named: TokenReference) -> TokenUri:
    try:
        return parse(named.uri)
    except BadUri as error:
        raise ca_folder.refused(path, str(error)) from None


def _module(path: Path, uri: TokenUri) -> TokenModule:
    """As root has allowed it, in the CA's own folder."""
    home = path.parent.parent if path.parent.name == NEXT else path.parent
    try:
        allowed = msgspec.json.decode(ca_folder.content(home / FILE, roots=True), type=TokenModules)
    except msgspec.MsgspecError as error:
        raise ca_folder.refused(home / FILE, f"it says nothing that can be read ({error})") from None
    module = allowed.of(uri.module)
    if module is None:
        raise KeystoreRefused(f"{uri.module} is not among the modules that root has allowed ({home / FILE})")
    return module
