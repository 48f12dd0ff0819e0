"""The files of a CA: whole or not there, and nobody else's."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from cryptography import x509

from mitmsec_certs import ca_folder
from mitmsec_certs.ca_folder import ABOUT, ISSUING, KEY, RETIRED, ROOT, About, CaKind, KeystoreRefused
from mitmsec_certs.keystore import open_keystore

NOW_S = int(time.time())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    open_keystore(tmp_path / "ca", "host", NOW_S)
    return tmp_path / "ca"


def test_what_is_written_is_there_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        ca_folder.write(tmp_path / "file", b"content", 0o640)
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_link_in_place_of_the_temporary_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "file.new").symlink_to(tmp_path / "victim")
    ca_folder.write(tmp_path / "file", b"content", 0o600)
    assert not (tmp_path / "victim").exists()
    assert (tmp_path / "file").read_bytes() == b"content"


def test_who_was_killed_while_writing_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "file.new").write_text("half")
    ca_folder.write(tmp_path / "file", b"content", 0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_public_half_can_be_read_by_anybody(folder: Path) -> None:
    public = ca_folder.certificates(folder)
    assert public.issuing.issuer == public.root.subject
    assert public.above == ()
    assert public.about.kind is CaKind.AUTOMATIC
    for name in (ROOT, ISSUING, ABOUT):
        assert (folder / name).stat().st_mode & 0o777 == 0o644


def test_a_ca_of_an_earlier_version_is_an_automatic_one(folder: Path) -> None:
    (folder / ABOUT).unlink()
    assert ca_folder.about_of(folder) == About()


@pytest.mark.parametrize("text", [b"", b"{", b'{"kind": "ours"}', b'{"surplus": 1}'])
def test_a_damaged_word_about_it_is_named(folder: Path, text: bytes) -> None:
    (folder / ABOUT).write_bytes(text)
    with pytest.raises(KeystoreRefused, match=r"about\.json: it says nothing"):
        ca_folder.about_of(folder)


def test_a_chain_between_issuing_ca_and_root_is_read_in_its_order(folder: Path, tmp_path: Path) -> None:
    other = open_keystore(tmp_path / "other", "host", NOW_S).issuing_pem.encode()
    (folder / ISSUING).write_bytes((folder / ISSUING).read_bytes() + other)
    assert ca_folder.certificates(folder).above == (x509.load_pem_x509_certificate(other),)


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_what_is_private_is_not_read_where_others_can(tmp_path: Path, mode: int) -> None:
    (tmp_path / "key").write_bytes(b"secret")
    (tmp_path / "key").chmod(mode)
    assert ca_folder.content(tmp_path / "key") == b"secret"
    with pytest.raises(KeystoreRefused, match="others can read"):
        ca_folder.content(tmp_path / "key", private=True)


def test_a_retired_ca_leaves_its_root_with_the_time_and_no_key(folder: Path) -> None:
    root = (folder / ROOT).read_bytes()
    ca_folder.retire(folder, NOW_S + 7)
    assert not ca_folder.is_complete(folder)
    (kept,) = (folder / RETIRED).iterdir()
    assert kept.read_bytes() == root
    assert kept.stat().st_mtime == NOW_S + 7
    assert not (folder / KEY).exists()


def test_clearing_removes_what_a_crash_left(tmp_path: Path) -> None:
    for name in (KEY, f"{ROOT}.new", ISSUING):
        (tmp_path / name).write_text("half")
    (tmp_path / "else").write_text("stays")
    ca_folder.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["else"]
