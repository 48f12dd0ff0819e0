"""issuing.key names a key in a token: who may say which module, and what a refused PIN leads to."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from softhsm import PIN, SoftHsm, needs_softhsm

from mitmsec.core.token_module import FILE, TokenModules
from mitmsec_certs import ca_folder, ceremony, issuing, kept_token
from mitmsec_certs.authority import spki_of
from mitmsec_certs.ca_folder import KEY, NEXT, KeystoreRefused
from mitmsec_certs.ceremony import CeremonyFailed
from mitmsec_certs.token_reference import TokenReference, written

pytestmark = [pytest.mark.root, needs_softhsm]
SECRET = b"7" * 64


@pytest.fixture
def folder(tmp_path: Path, softhsm: SoftHsm) -> Path:
    """A CA's, with root's word about the module, and a key that is named in it and in the token."""
    allowed = msgspec.json.encode(TokenModules().plus(softhsm.module))
    ca_folder.write(tmp_path / FILE, allowed, 0o644)
    named = TokenReference(uri=softhsm.uri("issuing"), pin=PIN)
    kept_token.write(tmp_path / KEY, named, None)
    ceremony.in_child(lambda: [spki_of(kept_token.made(tmp_path / KEY, named).public_key())])
    return tmp_path


def opened(path: Path, secret: bytes | None = None) -> bytes:
    """The public half of what the file at `path` names. Raises CeremonyFailed with what was refused."""
    return ceremony.in_child(lambda: [spki_of(issuing.private_key(path, secret).public_key())])[0]


def test_it_opens_also_while_it_waits_and_also_sealed(folder: Path) -> None:
    key = opened(folder / KEY)
    (folder / NEXT).mkdir()
    (folder / NEXT / KEY).write_bytes((folder / KEY).read_bytes())
    (folder / NEXT / KEY).chmod(0o600)
    assert opened(folder / NEXT / KEY) == key
    issuing.reseal(folder / KEY, None, SECRET)
    assert PIN.encode() not in (folder / KEY).read_bytes()
    assert opened(folder / KEY, SECRET) == key
    with pytest.raises(CeremonyFailed, match="was not brought"):
        opened(folder / KEY)
    issuing.reseal(folder / KEY, SECRET, None)
    assert opened(folder / KEY) == key


@pytest.mark.checklist("K2", "K9")
def test_a_pin_that_others_can_read_is_refused(folder: Path) -> None:
    (folder / KEY).chmod(0o640)
    with pytest.raises(CeremonyFailed, match="others can read"):
        opened(folder / KEY)


def test_a_refused_pin_is_tried_once_and_never_again(folder: Path, softhsm: SoftHsm) -> None:
    """A signer that is started every two seconds would have the token locked within seconds."""
    softhsm.change_pin("other-13579")
    with pytest.raises(CeremonyFailed, match="refuses the PIN"):
        opened(folder / KEY)
    softhsm.tokens.rename(softhsm.folder / "elsewhere")  # whoever asked the token would be told that it is not there
    with pytest.raises(CeremonyFailed, match="has refused the PIN before; `mitmsec ca pin`"):
        opened(folder / KEY)
    assert PIN.encode() in (folder / KEY).read_bytes()


def test_the_module_is_root_s_word_and_nobody_else_s(folder: Path, softhsm: SoftHsm) -> None:
    os.chown(folder / FILE, 1, 1)
    with pytest.raises(CeremonyFailed, match="not root's alone"):
        opened(folder / KEY)
    os.chown(folder / FILE, 0, 0)
    (folder / FILE).chmod(0o666)
    with pytest.raises(CeremonyFailed, match="not root's alone"):
        opened(folder / KEY)
    (folder / FILE).chmod(0o644)
    elsewhere = softhsm.uri("issuing").replace("softhsm/", "other/")
    kept_token.write(folder / KEY, TokenReference(uri=elsewhere, pin=PIN), None)
    with pytest.raises(CeremonyFailed, match="not among the modules that root has allowed"):
        opened(folder / KEY)


def test_files_that_say_nothing(folder: Path) -> None:
    (folder / KEY).write_bytes(b'{"pkcs11":7}')
    with pytest.raises(KeystoreRefused, match="names no key in a token"):
        kept_token.reference(folder / KEY, None)
    (folder / KEY).write_bytes(written(TokenReference(uri="pkcs11:", pin=PIN), None))
    with pytest.raises(CeremonyFailed, match="module-path has to name"):
        opened(folder / KEY)
    (folder / KEY).write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    assert kept_token.reference(folder / KEY, None) is None
    assert kept_token.uri_in(folder / KEY) == ""


def test_a_root_s_file_that_says_nothing(folder: Path) -> None:
    (folder / FILE).write_bytes(b"[]")
    with pytest.raises(CeremonyFailed, match=r"modules.json: it says nothing that can be read"):
        opened(folder / KEY)


def test_a_key_that_follows_has_another_name_which_does_not_grow(softhsm: SoftHsm) -> None:
    first = TokenReference(uri=softhsm.uri("issuing").replace("object=issuing", "object=issuing;id=%01"), pin=PIN)
    second = kept_token.following(first)
    third = kept_token.following(second)
    stem, end = softhsm.uri("issuing").split("?")
    for named in (second, third):
        assert named.uri.startswith(f"{stem}-")
        assert len(named.uri) == len(f"{stem}-01234567?{end}")
        assert named.pin == PIN
    assert second.uri != third.uri
    by_id = TokenReference(uri=softhsm.uri("x").replace("object=x", "id=%01"), pin=PIN)
    assert ";object=mitmsec-" in kept_token.following(by_id).uri
