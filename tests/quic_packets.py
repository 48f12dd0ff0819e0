"""QUIC's first packets for tests: real ones from tests/data/hellos/quic, and any others that are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mitmsec.core.quic_packets import VERSIONS, client_keys
from mitmsec_certs.packet_cipher import Aes128

V1, V2 = VERSIONS
ID = bytes.fromhex("8394c8f03e515708")


def _datagrams(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 2])
        found.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return found


FOLDER = Path(__file__).parent / "data" / "hellos" / "quic"
REAL = {path.stem: _datagrams(path.read_bytes()) for path in sorted(FOLDER.glob("*.bin"))}


def varint(value: int) -> bytes:
    for size, bits in ((1, 0x00), (2, 0x40), (4, 0x80), (8, 0xC0)):
        if value < 1 << (8 * size - 2):
            return (value | bits << 8 * (size - 1)).to_bytes(size)
    raise ValueError(value)


def crypto(at: int, data: bytes) -> bytes:
    return b"\x06" + varint(at) + varint(len(data)) + data


def initial(
    frames: bytes,
    number: int = 0,
    *,
    to: bytes = ID,
    keyed_by: bytes | None = None,
    version: int = V1,
    source: bytes = b"",
    token: bytes = b"",
    reserved: int = 0,
    number_size: int = 2,
    fixed_bit: int = 1,
) -> bytes:
    """One packet with these frames; `keyed_by` is the id of the connection's first packet where that is another."""
    keys = client_keys(version, to if keyed_by is None else keyed_by)
    frames = frames.ljust(4, b"\0")
    first = 0x80 | fixed_bit << 6 | VERSIONS[version].initial | reserved << 2 | number_size - 1
    ids = bytes([len(to)]) + to + bytes([len(source)]) + source
    size = varint(number_size + len(frames) + 16)
    header = bytes([first]) + version.to_bytes(4) + ids + varint(len(token)) + token + size
    written = number.to_bytes(number_size)
    nonce = (int.from_bytes(keys.iv) ^ number).to_bytes(12)
    sealed = AESGCM(keys.key).encrypt(nonce, frames, header + written)
    mask = Aes128().block(keys.header, (written + sealed)[4:20])
    hidden = bytes(one ^ other for one, other in zip(written, mask[1:], strict=False))
    return bytes([first ^ mask[0] & 0x0F]) + header[1:] + hidden + sealed


def flight(message: bytes, cuts: Sequence[int], **more: bytes) -> list[bytes]:
    """A datagram for each piece of the message."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(message)}), len(message)]
    return [
        initial(crypto(low, message[low:high]), number, **more)  # type: ignore[arg-type]
        for number, (low, high) in enumerate(pairwise(edges))
    ]
