"""A log's key is made once, is nobody else's, and signs what anybody can check."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from mitmsec.audit.checkpoint import Checkpoint, LogKey, opened
from mitmsec.audit.vault import Unopened
from mitmsec.seal import (
    CONTENT_FILE_NAME,
    FILE_NAME,
    LogKeyRefused,
    checks,
    open_content_sealer,
    open_log_signer,
)


def test_it_is_made_once_and_signs(tmp_path: Path) -> None:
    signer, again = open_log_signer(tmp_path), open_log_signer(tmp_path)
    assert signer.key == again.key == LogKey.parse(str(signer.key))
    assert signer.key.name.startswith("mitmsec.log/")
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    checkpoint = Checkpoint(signer.key.name, 7, bytes(32))
    note = checkpoint.signed(signer.key, again.sign)
    assert opened(note, signer.key, checks) == checkpoint


def test_a_log_that_begins_anew_has_another(tmp_path: Path) -> None:
    before = open_log_signer(tmp_path).key
    after = open_log_signer(tmp_path, makes_another=True).key
    assert before.name != after.name
    assert open_log_signer(tmp_path).key == after


def test_each_log_has_its_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    a, b = open_log_signer(tmp_path / "a"), open_log_signer(tmp_path / "b")
    assert a.key.name != b.key.name
    assert not checks(a.key.public, b"message", b.sign(b"message"))
    assert not checks(b"short", b"message", b.sign(b"message"))
    assert checks(b.key.public, b"message", b.sign(b"message"))


@pytest.mark.parametrize("spoil", ["empty", "text", "hint", "short", "binary", "name"])
def test_what_is_no_key_is_refused_with_what_to_do(tmp_path: Path, spoil: str) -> None:
    open_log_signer(tmp_path)
    path = tmp_path / FILE_NAME
    good = path.read_text()
    changed = {
        "empty": "",
        "text": "something else",
        "hint": good.replace(good.split("+")[3], "00000000"),
        "short": good[:-8] + "\n",
        "binary": good[:-5] + "\xff\n",
        "name": good.replace("mitmsec.log/", "a b/"),
    }[spoil]
    path.write_text(changed, encoding="latin-1")
    with pytest.raises(LogKeyRefused, match=r"no key of a log. Move it out of the way"):
        open_log_signer(tmp_path)


def test_one_that_others_can_read_or_that_is_a_link_is_none(tmp_path: Path) -> None:
    open_log_signer(tmp_path)
    path = tmp_path / FILE_NAME
    path.chmod(0o640)
    with pytest.raises(LogKeyRefused, match=r"mode 0640.*a secret no more. Move it"):
        open_log_signer(tmp_path)
    path.chmod(0o600)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LogKeyRefused, match="Move it out of the way"):
        open_log_signer(tmp_path)


# --- content ----------------------------------------------------------------------------------------------------------
def test_content_opens_with_its_key_as_its_events_and_as_no_others(tmp_path: Path) -> None:
    sealer, again = open_content_sealer(tmp_path), open_content_sealer(tmp_path)
    assert sealer.key_id == again.key_id
    path = tmp_path / CONTENT_FILE_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    sealed, key = sealer.sealed(b"hunter2", b"log\nevent-1")
    other_sealed, other_key = sealer.sealed(b"hunter2", b"log\nevent-1")
    assert len({sealed, other_sealed}) == len({key, other_key}) == 2
    assert again.opened(sealer.key_id, key, sealed, b"log\nevent-1") == b"hunter2"
    for wrong in (
        (key, sealed, b"log\nevent-2"),
        (other_key, sealed, b"log\nevent-1"),
        (key, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"log\nevent-1"),
        (key[:-1] + bytes([key[-1] ^ 1]), sealed, b"log\nevent-1"),
        (key, b"", b"log\nevent-1"),
        (b"", sealed, b"log\nevent-1"),
    ):
        with pytest.raises(Unopened, match="it was changed, or is another event's"):
            sealer.opened(sealer.key_id, *wrong)


def test_an_earlier_key_beside_it_opens_what_it_has_wrapped_and_seals_nothing_more(tmp_path: Path) -> None:
    before = open_content_sealer(tmp_path)
    sealed, key = before.sealed(b"x", b"")
    (tmp_path / CONTENT_FILE_NAME).rename(tmp_path / "elsewhere")
    alone = open_content_sealer(tmp_path)
    with pytest.raises(Unopened, match=f"another one, {before.key_id}, whose file is not there"):
        alone.opened(before.key_id, key, sealed, b"")
    (tmp_path / "elsewhere").rename(tmp_path / f"{CONTENT_FILE_NAME}.1")
    both = open_content_sealer(tmp_path)
    assert both.key_id == alone.key_id != before.key_id
    assert set(both.key_ids) == {before.key_id, alone.key_id}
    assert both.opened(before.key_id, key, sealed, b"") == b"x"


@pytest.mark.parametrize("spoil", ["", "text", "CONTENT+KEY+a/b+AAAA", "CONTENT+KEY+ab+AAAA", "CONTENT+KEY+ab+?"])
def test_what_is_no_key_for_content_is_refused_and_so_is_one_that_others_can_read(tmp_path: Path, spoil: str) -> None:
    open_content_sealer(tmp_path)
    path = tmp_path / CONTENT_FILE_NAME
    good = path.read_text()
    path.write_text(spoil)
    with pytest.raises(LogKeyRefused, match=r"no key for content. Move it out of the way"):
        open_content_sealer(tmp_path)
    path.write_text(good)
    path.chmod(0o640)
    with pytest.raises(LogKeyRefused, match="it is a secret no more"):
        open_content_sealer(tmp_path)
