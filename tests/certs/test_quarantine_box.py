"""What is sealed to people opens for any two of them together, and for nobody else; changed, for nobody."""

from __future__ import annotations

import io
import itertools
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from mitmsec.core.quarantine import MAGIC, PIECE_BYTES, SEALED_BYTES, Header, Recipient, in_pieces, parse_preamble
from mitmsec_certs.quarantine_box import NotOpened, Sealing, new_key, opened_key, opened_pieces, private_in

PEOPLE = {name: new_key() for name in ("alice", "bob", "carol")}
PRIVATES = {name: private_in(pem) for name, (pem, _) in PEOPLE.items()}
RECIPIENTS = [Recipient(name=name, public=public) for name, (_, public) in PEOPLE.items()]


def sealed(content: bytes, item: str = "f-1") -> bytes:
    one = Sealing(RECIPIENTS).begin(item, len(content), is_whole=True)
    return one.preamble + b"".join(one.sealed(piece, is_last=is_last) for piece, is_last in in_pieces([content]))


def opened(file: bytes, privates: Sequence[bytes]) -> bytes:
    header, at = parse_preamble(file)
    key, _ = opened_key(header, privates)
    return b"".join(opened_pieces(key, file[:at], io.BytesIO(file[at:])))


@pytest.mark.parametrize("size_bytes", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES])
def test_any_two_open_it_and_one_does_not(size_bytes: int) -> None:
    file = sealed(b"x" * size_bytes)
    for pair in itertools.permutations(PRIVATES.values(), 2):
        assert opened(file, pair) == b"x" * size_bytes
    for alone in PRIVATES.values():
        with pytest.raises(NotOpened, match="two of alice, bob, carol are wanted; these are those of"):
            opened(file, [alone])
        with pytest.raises(NotOpened, match="two of"):
            opened(file, [alone, alone])
    with pytest.raises(NotOpened, match="these are those of nobody"):
        opened(file, [private_in(new_key()[0]), private_in(new_key()[0])])


def test_who_opened_it_is_told() -> None:
    header, _ = parse_preamble(sealed(b"x"))
    assert opened_key(header, [PRIVATES["carol"], PRIVATES["alice"]])[1] == (RECIPIENTS[0], RECIPIENTS[2])


def test_one_key_under_two_names_is_one_persons() -> None:
    twice = (RECIPIENTS[0], Recipient(name="bob", public=RECIPIENTS[0].public))
    began = Sealing(twice).begin("f-1", 1, is_whole=True).preamble
    header = msgspec.json.decode(began.removeprefix(MAGIC), type=Header)
    with pytest.raises(NotOpened, match="two of alice, bob are wanted"):
        opened_key(header, [PRIVATES["alice"]])


def test_nothing_of_the_content_is_readable() -> None:
    assert b"confidential" not in sealed(b"confidential" * 10)


def test_what_was_changed_cut_or_exchanged_does_not_open() -> None:
    content = b"x" * (2 * PIECE_BYTES + 10)
    file, other = sealed(content), sealed(content, "f-2")
    header, at = parse_preamble(file)
    _, other_at = parse_preamble(other)
    privates = list(PRIVATES.values())
    first, second, third = (
        file[at + begin : at + begin + SEALED_BYTES] for begin in (0, SEALED_BYTES, 2 * SEALED_BYTES)
    )
    for rest in (
        first + second, first, b"", second + first + third, first + third, first + second + third + b"x",
        first + second + third[:-1], first + bytes(SEALED_BYTES) + third, other[other_at:],
    ):  # fmt: skip
        with pytest.raises(NotOpened, match="not what was sealed"):
            opened(file[:at] + rest, privates)
    renamed = file.replace(b'"content_bytes":131082', b'"content_bytes":131083')
    with pytest.raises(NotOpened, match="not what was sealed"):
        opened(renamed, privates)
    with pytest.raises(NotOpened, match="halves are damaged"):
        opened_key(replace(header, item="f-3"), privates)
    with pytest.raises(NotOpened, match="halves are damaged"):
        opened_key(replace(header, ephemeral=bytes(32)), privates)


def test_a_key_is_a_file_that_openssl_makes_as_well(tmp_path: Path) -> None:
    made = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "X25519", "-out", str(made)], check=True, capture_output=True)
    assert len(private_in(made.read_bytes())) == 32
    subprocess.run(["openssl", "genpkey", "-algorithm", "ED25519", "-out", str(made)], check=True, capture_output=True)
    for pem in (made.read_bytes(), b"no key"):
        with pytest.raises(NotOpened, match="no private key"):
            private_in(pem)
