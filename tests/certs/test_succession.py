"""One CA follows another, and nothing that is trusted stops being so before its time."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
from cryptography import x509

from mitmsec_certs import ca_folder, succession
from mitmsec_certs.ca_folder import ABOUT, ISSUING, KEY, NEXT, ROOT, About, CaKind, KeystoreRefused
from mitmsec_certs.ceremony import lasting, signed
from mitmsec_certs.constraints import UNCONSTRAINED
from mitmsec_certs.keystore import Keystore, open_keystore
from mitmsec_certs.profile import CA_LIFETIME_S, DAY_S
from mitmsec_certs.succession import RETIRED_TRUSTED_S

NOW_S = int(time.time())
PASSPHRASE = "correct horse battery"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    open_keystore(tmp_path / "ca", "host", NOW_S)
    return tmp_path / "ca"


def opened(folder: Path, now_s: int = NOW_S) -> Keystore:
    return open_keystore(folder, "host", now_s)


def make_next(folder: Path) -> tuple[str, bytes]:
    """A lasting CA waits. Its root, and that one's file."""
    root, issuing, sealed = lasting(succession.prepare(folder), "host", NOW_S, UNCONSTRAINED, PASSPHRASE)
    succession.complete(folder, [issuing], About(kind=CaKind.OWN), root)
    return root.decode(), sealed


def test_what_is_being_made_changes_nothing_until_it_is_complete(folder: Path) -> None:
    before = opened(folder)
    succession.prepare(folder)
    assert opened(folder).roots_pem == before.roots_pem
    with pytest.raises(KeystoreRefused, match="no CA waits"):
        succession.take_over(folder, NOW_S)
    assert opened(folder).issuing_pem == before.issuing_pem


@pytest.mark.checklist("K3")
def test_a_rotation_rehearsed_each_root_is_trusted_before_it_serves_and_after(folder: Path) -> None:
    """Old serves, both trusted; then new serves, both trusted; a day later the old one is trusted no more."""
    old = opened(folder)
    new_root, _ = make_next(folder)
    overlap = opened(folder)
    assert overlap.issuing_pem == old.issuing_pem
    assert overlap.roots_pem == old.root_pem + new_root
    succession.take_over(folder, NOW_S)
    after = opened(folder)
    assert after.kind is CaKind.OWN
    assert after.issuing_pem != old.issuing_pem
    assert after.roots_pem == new_root + old.root_pem
    assert opened(folder, NOW_S + RETIRED_TRUSTED_S).roots_pem == new_root


def test_every_ca_that_is_ours_is_known_as_ours_and_an_enterprises_root_is_not(folder: Path) -> None:
    """So that no origin proves itself by a leaf of ours, whichever of them signed it."""
    old = opened(folder)
    make_next(folder)
    assert opened(folder).own_pem.count("BEGIN CERTIFICATE") == 4
    succession.take_over(folder, NOW_S)
    assert old.root_pem in opened(folder, NOW_S + 2 * DAY_S).own_pem
    (folder / ABOUT).write_text('{"kind":"imported"}')
    imported = opened(folder)
    assert imported.issuing_pem in imported.own_pem
    assert imported.root_pem not in imported.own_pem
    make_next(folder)
    succession.take_over(folder, NOW_S)
    assert imported.root_pem in opened(folder).roots_pem
    assert imported.root_pem not in opened(folder).own_pem
    assert imported.issuing_pem in opened(folder).own_pem, "leaves of its live on, below a root that is trusted"
    assert imported.issuing_pem not in opened(folder).roots_pem


def test_an_imported_ca_that_is_renewed_under_the_same_root_stays_known_as_ours(folder: Path) -> None:
    _, sealed = make_next(folder)
    succession.take_over(folder, NOW_S)
    (folder / ABOUT).write_text('{"kind":"imported"}')
    before = opened(folder)
    root, issuing = signed(succession.prepare(folder), sealed, PASSPHRASE, "host", NOW_S)
    succession.complete(folder, [issuing], About(kind=CaKind.IMPORTED), root)
    succession.take_over(folder, NOW_S)
    after = opened(folder)
    assert after.issuing_pem != before.issuing_pem
    assert {before.issuing_pem, after.issuing_pem} == {
        pem for pem in (before.issuing_pem, after.issuing_pem, after.root_pem) if pem in after.own_pem
    }


def test_another_issuing_ca_under_the_same_root_changes_nobodys_trust(folder: Path) -> None:
    _, sealed = make_next(folder)
    succession.take_over(folder, NOW_S - 2 * DAY_S)
    before = opened(folder)
    root, issuing = signed(succession.prepare(folder), sealed, PASSPHRASE, "host", NOW_S)
    succession.complete(folder, [issuing], About(kind=CaKind.OWN), root)
    succession.take_over(folder, NOW_S)
    after = opened(folder)
    assert after.roots_pem == before.roots_pem
    assert after.authority.public_key != before.authority.public_key


def states(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("died_after", range(8))
def test_a_crash_at_any_step_of_taking_over_leaves_one_whole_ca(
    folder: Path, monkeypatch: pytest.MonkeyPatch, died_after: int
) -> None:
    """The old one or the new one; and the next open finishes what was begun."""
    old = opened(folder)
    new_root, _ = make_next(folder)
    steps = 0

    class Died(BaseException):
        pass

    def dying(name: str) -> None:
        real = getattr(Path, name)

        def step(self: Path, *arguments: object, **options: object) -> object:
            nonlocal steps
            if steps == died_after:
                raise Died
            steps += 1
            return real(self, *arguments, **options)

        monkeypatch.setattr(Path, name, step)

    dying("rename")
    dying("unlink")
    with contextlib.suppress(Died):
        succession.take_over(folder, NOW_S)
    monkeypatch.undo()
    found = opened(folder)
    assert not found.created
    assert found.root_pem == (old.root_pem if steps == 0 else new_root)
    assert not ca_folder.is_complete(folder / NEXT) or steps == 0


def test_a_ca_that_waits_where_there_is_none_comes_up_by_itself(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    folder.mkdir(mode=0o700)
    new_root, _ = make_next(folder)
    found = opened(folder)
    assert (found.created, found.root_pem) == (False, new_root)
    assert {path.name for path in folder.iterdir()} == {"lock", "next", KEY, ISSUING, ABOUT, ROOT}


def test_preparing_again_forgets_what_was_prepared(folder: Path) -> None:
    make_next(folder)
    old = opened(folder)
    succession.prepare(folder)
    assert opened(folder).roots_pem == old.root_pem
    assert os.listdir(folder / NEXT) == [KEY]
    assert (folder / NEXT / KEY).stat().st_mode & 0o777 == 0o600


def test_a_lasting_ca_that_has_ended_is_never_replaced_by_itself(folder: Path) -> None:
    new_root, _ = make_next(folder)
    succession.take_over(folder, NOW_S)
    with pytest.raises(KeystoreRefused, match="ca rotate"):
        opened(folder, NOW_S + CA_LIFETIME_S)
    assert (folder / ROOT).read_text() == new_root


def test_a_retired_root_that_has_ended_is_trusted_no_more(folder: Path) -> None:
    end_s = int(x509.load_pem_x509_certificate((folder / ROOT).read_bytes()).not_valid_after_utc.timestamp())
    make_next(folder)
    succession.take_over(folder, end_s)
    assert len(succession.trusted(folder, end_s)) == 2
    assert len(succession.trusted(folder, end_s + 1)) == 1


def test_certificates_for_another_key_do_not_wait(folder: Path) -> None:
    """Two commands at once: the second has prepared another key meanwhile."""
    first = succession.prepare(folder)
    succession.prepare(folder)
    root, issuing, _ = lasting(first, "host", NOW_S, UNCONSTRAINED, PASSPHRASE)
    with pytest.raises(KeystoreRefused, match="do not belong together"):
        succession.complete(folder, [issuing], About(kind=CaKind.OWN), root)
    assert not list((folder / NEXT).iterdir())
