"""Key and certificates of an issuing CA belong together, or nothing is signed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mitmsec_certs import ca_folder
from mitmsec_certs.ca_folder import ISSUING, KEY, KeystoreRefused
from mitmsec_certs.issuing import authority_in
from mitmsec_certs.keystore import open_keystore


def test_a_whole_ca_is_an_authority_with_its_limits(tmp_path: Path) -> None:
    open_keystore(tmp_path / "ca", "host", int(time.time()))
    authority = authority_in(tmp_path / "ca", ca_folder.certificates(tmp_path / "ca"))
    assert len(authority.sent) == 1
    assert all(limit.are_none for limit in authority.constraints)


@pytest.mark.parametrize("name", [KEY, ISSUING])
def test_what_is_another_cas_is_refused(tmp_path: Path, name: str) -> None:
    for which in ("ca", "other"):
        open_keystore(tmp_path / which, "host", int(time.time()))
    (tmp_path / "other" / name).replace(tmp_path / "ca" / name)
    with pytest.raises(KeystoreRefused, match="do not belong together"):
        authority_in(tmp_path / "ca", ca_folder.certificates(tmp_path / "ca"))


@pytest.mark.checklist("K9")
@pytest.mark.parametrize("mode", [0o640, 0o644, 0o604])
def test_a_key_that_others_can_read_is_not_used(tmp_path: Path, mode: int) -> None:
    open_keystore(tmp_path / "ca", "host", int(time.time()))
    public = ca_folder.certificates(tmp_path / "ca")
    (tmp_path / "ca" / KEY).chmod(mode)
    with pytest.raises(KeystoreRefused, match="others can read the key"):
        authority_in(tmp_path / "ca", public)
