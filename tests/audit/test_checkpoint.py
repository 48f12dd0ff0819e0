"""A checkpoint is what its key has signed, letter by letter, and nothing else is one."""

from __future__ import annotations

import base64

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.audit.checkpoint import Checkpoint, LogKey, Untrue, opened, parsed

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = LogKey("mitmsec.log/test", PRIVATE.public_key().public_bytes_raw())
OTHERS = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
OTHER = LogKey("mitmsec.log/test", OTHERS.public_key().public_bytes_raw())
ROOT = bytes(range(100, 132))
MADE = Checkpoint("mitmsec.log/test", 70_000, ROOT)
NOTE = MADE.signed(KEY, PRIVATE.sign)


def checks(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def test_it_looks_as_the_specification_has_it() -> None:
    name, size, root, blank, signature, end = NOTE.split("\n")
    assert (name, size, base64.b64decode(root), blank, end) == ("mitmsec.log/test", "70000", ROOT, "", "")
    dash, by, encoded = signature.split(" ")
    assert (dash, by) == ("—", "mitmsec.log/test")
    assert base64.b64decode(encoded) == KEY.hint + PRIVATE.sign(MADE.body())


def test_the_key_of_another_tool_s_documentation_is_read() -> None:
    """Go's golang.org/x/mod/sumdb/note has it."""
    key = LogKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW\n")
    assert (key.name, key.hint.hex(), str(key)) == (
        "PeterNeumann",
        "c74f20a3",
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    )
    note = (
        "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n"
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )
    body, signature = note.split("\n\n— PeterNeumann ")
    assert checks(key.public, body.encode() + b"\n", base64.b64decode(signature)[4:])


@given(st.integers(0, 10**18), st.binary(min_size=32, max_size=32))
def test_what_was_signed_is_read(size: int, root: bytes) -> None:
    made = Checkpoint("mitmsec.log/test", size, root)
    assert opened(made.signed(KEY, PRIVATE.sign), KEY, checks) == made
    assert parsed(made.body().decode()) == made


@given(st.integers(0, len(NOTE) - 1), st.characters(codec="utf-8"))
def test_another_letter_anywhere_is_noticed(at: int, letter: str) -> None:
    changed = NOTE[:at] + letter + NOTE[at + 1 :]
    if changed == NOTE:
        return
    with pytest.raises(Untrue):
        opened(changed, KEY, checks)


def test_another_s_signature_counts_for_nothing_and_harms_nothing() -> None:
    with pytest.raises(Untrue, match="no signature of mitmsec"):
        opened(NOTE, OTHER, checks)
    forged = MADE.signed(KEY, OTHERS.sign)
    with pytest.raises(Untrue, match="not of this text"):
        opened(forged, KEY, checks)
    witnessed = NOTE + MADE.signed(OTHER, OTHERS.sign).partition("\n\n")[2]
    assert opened(witnessed, KEY, checks) == opened(witnessed, OTHER, checks) == MADE
    with pytest.raises(Untrue, match="not of this text"):
        opened(NOTE + forged.partition("\n\n")[2], KEY, checks)


@pytest.mark.parametrize(
    "note",
    [
        "",
        "mitmsec.log/test\n70000\n",
        NOTE.rstrip("\n"),
        NOTE.replace("70000", "070000"),
        NOTE.replace("70000\n", "70000\nextension\n"),
        NOTE.replace("mitmsec.log/test", "mitmsec log", 1),
        NOTE.replace("— ", "- "),
        NOTE + "— somebody\n",
        NOTE + "— somebody n.t\n",
        NOTE.replace(base64.b64encode(ROOT).decode(), "AAAA"),
        NOTE.replace(base64.b64encode(ROOT).decode(), "!"),
        NOTE + f"— somebody {'A' * 70_000}\n",
    ],
)
def test_what_is_none_is_said_to_be_none(note: str) -> None:
    with pytest.raises(Untrue):
        opened(note, KEY, checks)


@pytest.mark.parametrize(
    "text",
    ["", "name", "name+00000000+", str(KEY).replace("test", "best"), str(KEY)[:-4], "a b" + str(KEY)[16:], "n+0+AA=="],
)
def test_what_is_no_key_is_told_as_such(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        LogKey.parse(text)
    assert LogKey.parse(str(KEY)) == KEY
