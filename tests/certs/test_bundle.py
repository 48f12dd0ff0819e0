"""The roots that a command would have used, and ours."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import example, given
from hypothesis import strategies as st

from mitmsec_certs.bundle import (
    FILE_LIMIT_BYTES,
    SYSTEM_BUNDLES,
    BadBundle,
    Bundle,
    LocalFiles,
    roots_as_used,
    with_root,
)
from mitmsec_certs.keystore import Keystore, open_keystore

BROKEN = b"-----BEGIN CERTIFICATE-----\nTUlJQ\n-----END CERTIFICATE-----\n"
KEY_BLOCK = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"


class FakeFiles:
    """Files from a mapping; folders are what lies below them."""

    def __init__(self, content: Mapping[str, bytes]) -> None:
        self.content = content
        self.asked: list[str] = []

    def read(self, path: str) -> bytes:
        self.asked.append(path)
        if path not in self.content:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.content[path]

    def names(self, folder: str) -> Sequence[str]:
        found = [Path(path).name for path in self.content if str(Path(path).parent) == folder]
        if not found:
            raise FileNotFoundError(2, "No such file or directory", folder)
        return found


@pytest.fixture(scope="session")
def pems(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("roots")
    return [open_keystore(folder / str(n), f"host{n}", 1_800_000_000).root_pem.encode() for n in range(3)]


def ders(*pems: bytes) -> tuple[bytes, ...]:
    return tuple(ssl.PEM_cert_to_DER_cert(pem.decode()) for pem in pems)


@pytest.mark.parametrize("path", SYSTEM_BUNDLES)
def test_without_a_callers_own_the_systems_roots_are_used(pems: list[bytes], path: str) -> None:
    bundle = roots_as_used({"HOME": "/root", "SSL_CERT_FILE": ""}, FakeFiles({path: pems[0] + pems[1]}))
    assert bundle == Bundle(roots=ders(pems[0], pems[1]), sources=(path,))


def test_the_first_system_bundle_that_holds_roots_counts(pems: list[bytes]) -> None:
    files = FakeFiles({SYSTEM_BUNDLES[0]: b"", SYSTEM_BUNDLES[1]: pems[0], SYSTEM_BUNDLES[2]: pems[1]})
    assert roots_as_used({}, files).roots == ders(pems[0])


def test_a_machine_without_roots_has_an_empty_bundle() -> None:
    assert roots_as_used({}, FakeFiles({})) == Bundle(roots=(), sources=())


def test_a_callers_file_replaces_the_systems_roots(pems: list[bytes]) -> None:
    files = FakeFiles({"/corp.pem": pems[0], SYSTEM_BUNDLES[0]: pems[1]})
    bundle = roots_as_used({"SSL_CERT_FILE": "/corp.pem"}, files)
    assert bundle == Bundle(roots=ders(pems[0]), sources=("/corp.pem",))
    assert files.asked == ["/corp.pem"]


def test_a_callers_folder_is_read_as_openssl_does(pems: list[bytes]) -> None:
    """Hashed names only; several folders are separated; broken ones are counted."""
    files = FakeFiles(
        {
            "/d/0a1b2c3d.0": pems[0],
            "/d/0a1b2c3d.1": BROKEN,
            "/d/not-hashed.pem": pems[2],
            "/d/README": b"words",
            "/e/ffffffff.12": pems[1],
        }
    )
    bundle = roots_as_used({"SSL_CERT_DIR": os.pathsep.join(("/d", "", "/e"))}, files)
    assert bundle == Bundle(roots=ders(pems[0], pems[1]), sources=("/d", "/e"), skipped=1)


def test_a_folder_without_hashed_names_gives_what_is_called_a_certificate(pems: list[bytes]) -> None:
    files = FakeFiles({"/d/a.pem": pems[0], "/d/b.crt": pems[1], "/d/c.txt": pems[2]})
    assert roots_as_used({"SSL_CERT_DIR": "/d"}, files).roots == ders(pems[0], pems[1])


def test_file_and_folder_together_give_each_root_once(pems: list[bytes]) -> None:
    files = FakeFiles({"/corp.pem": pems[0] + pems[1] + pems[0], "/d/00000000.0": pems[1] + pems[2]})
    bundle = roots_as_used({"SSL_CERT_FILE": "/corp.pem", "SSL_CERT_DIR": "/d"}, files)
    assert bundle.roots == ders(*pems)
    assert bundle.sources == ("/corp.pem", "/d")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no certificate"),
        (b"\x00\xff binary", "no certificate"),
        (KEY_BLOCK, "no certificate"),
        (BROKEN, "block 1 is not a certificate"),
        (b"-----BEGIN CERTIFICATE-----\nMIIB", "block 1"),
        (b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n", "block 1"),
        (b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "block 1"),
    ],
)
def test_a_callers_file_that_is_not_right_is_named(content: bytes, words: str) -> None:
    with pytest.raises(BadBundle, match=f"SSL_CERT_FILE: /corp.pem: .*{words}"):
        roots_as_used({"SSL_CERT_FILE": "/corp.pem"}, FakeFiles({"/corp.pem": content}))


def test_a_callers_file_or_folder_that_is_missing_is_named() -> None:
    with pytest.raises(BadBundle, match=r"SSL_CERT_FILE: /gone\.pem: No such file"):
        roots_as_used({"SSL_CERT_FILE": "/gone.pem"}, FakeFiles({}))
    with pytest.raises(BadBundle, match="SSL_CERT_DIR: /gone: No such file"):
        roots_as_used({"SSL_CERT_DIR": "/gone"}, FakeFiles({}))


def test_one_missing_folder_of_several_is_passed_over_as_openssl_does(pems: list[bytes]) -> None:
    files = FakeFiles({"/corp.pem": pems[0], "/d/00000000.0": pems[1]})
    found = roots_as_used({"SSL_CERT_DIR": "/gone:/d"}, files)
    assert found == Bundle(roots=ders(pems[1]), sources=("/d",))
    found = roots_as_used({"SSL_CERT_FILE": "/corp.pem", "SSL_CERT_DIR": "/gone"}, files)
    assert found == Bundle(roots=ders(pems[0]), sources=("/corp.pem",))
    with pytest.raises(BadBundle, match="SSL_CERT_DIR: /gone: No such file or directory; /lost: No such file"):
        roots_as_used({"SSL_CERT_DIR": "/gone:/lost"}, files)


def test_further_roots_are_added_once_and_in_order(pems: list[bytes]) -> None:
    bundle = Bundle(roots=ders(pems[0]), sources=("/corp.pem",), skipped=1)
    assert bundle.adding(ders(pems[1], pems[0])) == Bundle(
        roots=ders(pems[0], pems[1]), sources=("/corp.pem",), skipped=1
    )


def test_a_broken_block_after_good_ones_is_found(pems: list[bytes]) -> None:
    cut = pems[1].replace(b"-----END CERTIFICATE-----\n", b"")
    for content in (pems[0] + BROKEN, pems[0] + cut + pems[2], pems[0] + cut):
        with pytest.raises(BadBundle, match="block 2"):
            roots_as_used({"SSL_CERT_FILE": "/corp.pem"}, FakeFiles({"/corp.pem": content}))


def test_in_the_systems_list_a_broken_block_is_left_out_and_counted(pems: list[bytes]) -> None:
    bundle = roots_as_used({}, FakeFiles({SYSTEM_BUNDLES[0]: pems[0] + BROKEN + pems[1]}))
    assert bundle == Bundle(roots=ders(pems[0], pems[1]), sources=(SYSTEM_BUNDLES[0],), skipped=1)


def test_comments_other_blocks_and_line_ends_do_not_matter(pems: list[bytes]) -> None:
    content = b"# Root\r\n" + KEY_BLOCK + pems[0].replace(b"\n", b"\r\n") + b"Subject: x\n" + pems[1].rstrip()
    content = content.replace(b"BEGIN CERTIFICATE", b"BEGIN X509 CERTIFICATE", 1)
    content = content.replace(b"END CERTIFICATE", b"END X509 CERTIFICATE", 1)
    assert roots_as_used({"SSL_CERT_FILE": "/f"}, FakeFiles({"/f": content})).roots == ders(pems[0], pems[1])


def test_our_root_is_added_once(pems: list[bytes], keystore: Keystore) -> None:
    bundle = Bundle(roots=ders(*pems), sources=())
    once = with_root(bundle, keystore.root_pem)
    assert once == bundle.pem + keystore.root_pem.encode()
    again = roots_as_used({"SSL_CERT_FILE": "/f"}, FakeFiles({"/f": once}))
    assert with_root(again, keystore.root_pem) == once
    with pytest.raises(BadBundle, match="our root"):
        with_root(bundle, b"nonsense")


def test_openssl_reads_the_bundle(pems: list[bytes], keystore: Keystore, tmp_path: Path) -> None:
    (tmp_path / "bundle.pem").write_bytes(with_root(Bundle(roots=ders(*pems), sources=()), keystore.root_pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(tmp_path / "bundle.pem")
    assert set(context.get_ca_certs(binary_form=True)) == {*ders(*pems), *ders(keystore.root_pem.encode())}


@pytest.mark.skipif(not os.path.isfile(SYSTEM_BUNDLES[0]), reason="no system roots of this kind here")
def test_this_machines_roots_are_those_that_openssl_finds_in_the_same_file() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(SYSTEM_BUNDLES[0])
    assert set(roots_as_used({}).roots) == set(context.get_ca_certs(binary_form=True))


def test_local_files_are_regular_and_of_a_sane_size(tmp_path: Path) -> None:
    """A device or pipe in the caller's environment neither hangs us nor fills our memory."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge.pem").touch()
    os.truncate(tmp_path / "huge.pem", FILE_LIMIT_BYTES + 1)
    wrong = {
        "pipe": "not a regular file",
        "huge.pem": f"more than {FILE_LIMIT_BYTES} bytes",
        "missing.pem": "there is no such file",
    }
    for name, why in wrong.items():
        with pytest.raises(BadBundle) as refused:
            roots_as_used({"SSL_CERT_FILE": str(tmp_path / name)})
        assert str(refused.value) == f"SSL_CERT_FILE: {tmp_path / name}: {why}"
    with pytest.raises(BadBundle, match="zero"):
        roots_as_used({"SSL_CERT_FILE": "/dev/zero"})


def test_a_folder_on_disk_with_a_dangling_link(tmp_path: Path, pems: list[bytes]) -> None:
    (tmp_path / "00000000.0").write_bytes(pems[0])
    (tmp_path / "00000001.0").symlink_to(tmp_path / "gone")
    bundle = roots_as_used({"SSL_CERT_DIR": str(tmp_path)}, LocalFiles())
    assert (bundle.roots, bundle.skipped) == (ders(pems[0]), 1)


@given(st.binary(max_size=400), st.booleans())
@example(b"0\x80", True)
@example(b"0\x85\x01\x00\x00\x00\x00", True)
@example(b"0\x02\x30", True)
@example(b"0\x00", True)
def test_any_bytes_are_roots_or_bad(data: bytes, armoured: bool) -> None:
    """Never another exception, and nothing that OpenSSL's outline of a certificate does not fit."""
    content = ssl.DER_cert_to_PEM_cert(data).encode() if armoured else data
    with pytest.raises(BadBundle):
        roots_as_used({"SSL_CERT_FILE": "/f"}, FakeFiles({"/f": content}))


@given(st.data())
def test_a_cut_certificate_is_bad(keystore: Keystore, data: st.DataObject) -> None:
    der = keystore.authority.certificate
    cut = der[: data.draw(st.integers(0, len(der) - 1))]
    for wrong in (cut, der + b"\0"):
        with pytest.raises(BadBundle):
            with_root(Bundle(roots=(), sources=()), ssl.DER_cert_to_PEM_cert(wrong))
    x509.load_der_x509_certificate(der)
