"""A token is opened by a module that nobody but root can have written, and tells in words why it is not."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from softhsm import LABEL, MODULE, PIN, SoftHsm, needs_softhsm

from mitmsec.core.token_module import TokenModule
from mitmsec_certs import ceremony
from mitmsec_certs.ceremony import CeremonyFailed
from mitmsec_certs.token_session import TokenRefused, require_roots, session
from mitmsec_certs.token_uri import parse

pytestmark = pytest.mark.root


@pytest.fixture
def roots() -> Iterator[Path]:
    """A folder of root's, all the way up: not below /tmp, where anybody may make one."""
    with tempfile.TemporaryDirectory(prefix="mitmsec-module-", dir="/run") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def opening(softhsm: SoftHsm, uri: str, pin: str = PIN, module: TokenModule | None = None) -> list[bytes]:
    """The labels of tokens that were opened, or CeremonyFailed with what was said. In a process of its own: a module is
    loaded once in the life of one.
    """
    return ceremony.in_child(lambda: [session(parse(uri), pin, module or softhsm.module).token.label.encode()])


@needs_softhsm
def test_the_token_that_is_meant_is_opened_and_no_other(softhsm: SoftHsm) -> None:
    softhsm.util("--init-token", "--free", "--label", "another", "--so-pin", "1111-1111", "--pin", PIN)
    assert opening(softhsm, softhsm.uri("o")) == [LABEL.encode()]
    assert opening(softhsm, softhsm.uri("o", token="another")) == [b"another"]
    with pytest.raises(CeremonyFailed, match="knows no such token"):
        opening(softhsm, softhsm.uri("o", token="third"))
    with pytest.raises(CeremonyFailed, match="knows no such token"):
        opening(softhsm, softhsm.uri("o").replace("object", "serial=1234;object"))
    softhsm.util("--init-token", "--free", "--label", "another", "--so-pin", "1111-1111", "--pin", PIN)
    with pytest.raises(CeremonyFailed, match="2 tokens are called so"):
        opening(softhsm, softhsm.uri("o", token="another"))


@needs_softhsm
def test_a_wrong_pin_is_told_as_such_and_never_repeated(softhsm: SoftHsm) -> None:
    with pytest.raises(CeremonyFailed, match="refuses the PIN") as error:
        opening(softhsm, softhsm.uri("o"), "wrong-97531")
    assert "97531" not in str(error.value)


@needs_softhsm
def test_the_module_has_the_environment_that_root_wrote_down_and_no_other(
    softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what works for who runs a command would not work for the signer."""
    monkeypatch.setenv("SOFTHSM2_CONF", str(softhsm.configuration))
    with pytest.raises(CeremonyFailed, match="knows no such token"):
        opening(softhsm, softhsm.uri("o"), module=TokenModule(path=MODULE))
    assert os.environ["SOFTHSM2_CONF"] == str(softhsm.configuration)


@needs_softhsm
def test_a_file_that_is_no_module(softhsm: SoftHsm, roots: Path) -> None:
    file = roots / "none.so"
    file.write_bytes(b"not a shared object")
    file.chmod(0o644)
    with pytest.raises(CeremonyFailed, match=str(file)):
        opening(softhsm, f"pkcs11:token=t;object=o?module-path={file}", module=TokenModule(path=str(file)))


def test_a_module_that_others_could_have_written_is_not_loaded(roots: Path) -> None:
    file = roots / "module.so"
    with pytest.raises(TokenRefused, match="no module there"):
        require_roots(str(file))
    file.touch(0o755)
    require_roots(str(file))
    file.chmod(0o775)
    with pytest.raises(TokenRefused, match="mode 0775: others than root"):
        require_roots(str(file))
    file.chmod(0o755)
    os.chown(file, 1, 0)
    with pytest.raises(TokenRefused, match="owned by uid 1"):
        require_roots(str(file))
    os.chown(file, 0, 0)
    roots.chmod(0o777)
    with pytest.raises(TokenRefused, match=f"{roots}: owned by uid 0, mode 0777"):
        require_roots(str(file))
    roots.chmod(0o755)
    (roots / "link.so").symlink_to(file)
    with pytest.raises(TokenRefused, match="a link on the way"):
        require_roots(str(roots / "link.so"))


def test_a_module_in_a_folder_where_anybody_may_make_one_is_not_loaded(tmp_path: Path) -> None:
    file = tmp_path / "module.so"
    file.touch(0o755)
    with pytest.raises(TokenRefused, match="others than root"):
        require_roots(str(file))
