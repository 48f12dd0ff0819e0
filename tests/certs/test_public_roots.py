"""Roots that came with the system, and roots that somebody installed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from badssl_certificates import Certified, root

from mitmsec_certs.bundle import Bundle, certificates_in
from mitmsec_certs.public_roots import FILES, FOLDERS, marked, marks_in, public_roots

PUBLIC, OTHER, INSTALLED = root("public"), root("another public one"), root("installed")


class Machine:
    """Files of some distribution."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def read(self, path: str) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]

    def names(self, folder: str) -> Sequence[str]:
        found = [path.rpartition("/")[2] for path in self.files if path.startswith(f"{folder}/")]
        if not found:
            raise FileNotFoundError(folder)
        return found


def bundle(*roots: Certified) -> Bundle:
    return Bundle(roots=tuple(one.der for one in roots), sources=())


def test_debian_ships_a_folder() -> None:
    machine = Machine({f"{FOLDERS[0]}/a.crt": PUBLIC.pem, f"{FOLDERS[0]}/b.crt": OTHER.pem, "/x": INSTALLED.pem})
    assert public_roots(machine) == {PUBLIC.der, OTHER.der}


@pytest.mark.parametrize("path", FILES)
def test_others_ship_a_file_with_more_in_it(path: str) -> None:
    text = b'[p11-kit-object-v1]\nlabel: "public"\ntrusted: true\n' + PUBLIC.pem
    assert public_roots(Machine({path: text})) == {PUBLIC.der}


def test_a_machine_without_a_list_has_none() -> None:
    assert public_roots(Machine({})) == frozenset()


def test_marks_survive_the_bundles_text_and_the_bundle_the_marks() -> None:
    pem = marked(bundle(INSTALLED, PUBLIC, OTHER), frozenset({PUBLIC.der, root("elsewhere").der}))
    assert marks_in(pem) == {hashlib.sha256(PUBLIC.der).hexdigest()}
    assert certificates_in(pem) == (INSTALLED.der, PUBLIC.der, OTHER.der)


@pytest.mark.parametrize(
    "pem", [b"", PUBLIC.pem, b"# public\n", b"# public\nmore", b"# public\n-----BEGIN CERTIFICATE-----\n"]
)
def test_text_without_a_mark_and_a_block_marks_nothing(pem: bytes) -> None:
    assert marks_in(pem) == frozenset()
