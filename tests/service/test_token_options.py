"""What `--pkcs11` takes, and how the PIN comes."""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner, Result
from softhsm import MODULE

from mitmsec.service.token_options import pin_of_token, pin_source_option, token_options, token_order

pytestmark = pytest.mark.root
URI = f"pkcs11:token=t;object=o?module-path={MODULE}"


@click.command()
@token_options
def ordered(pkcs11: str | None, pkcs11_path: tuple[str, ...], pkcs11_env: tuple[str, ...]) -> None:
    click.echo(msgspec.json.encode(token_order(pkcs11, pkcs11_path, pkcs11_env)))


@click.command()
@pin_source_option
def asked(pin_source: str | None) -> None:
    click.echo(pin_of_token(pin_source, "the token"))


def told(*words: str) -> Result:
    return CliRunner().invoke(ordered, words)


@pytest.fixture
def pin_file(tmp_path: Path) -> Path:
    file = tmp_path / "pin"
    file.write_text("2468\nnot this\n")
    file.chmod(0o600)
    return file


def test_a_key_its_module_and_the_pin_from_a_file_of_root_s(pin_file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    paths = ("--pkcs11-path", str(tmp_path / "link"), "--pkcs11-path", str(tmp_path))
    done = told("--pkcs11", f"{URI}&pin-source=file:{pin_file}", *paths, "--pkcs11-env", "CONF=/etc/m=1")
    assert done.exit_code == 0, done.output
    order = msgspec.json.decode(done.stdout)
    assert order["reference"] == {"uri": URI, "pin": "2468", "pin_refused": False}
    assert order["module"] == {"path": MODULE, "shows": ["/etc", str(tmp_path)], "environment": [["CONF", "/etc/m=1"]]}


def test_without_pkcs11_nothing_is_ordered() -> None:
    assert told().stdout.strip() == "null"
    assert "belong to --pkcs11" in told("--pkcs11-path", "/etc").output


@pytest.mark.parametrize(("mode", "owner"), [(0o640, 0), (0o604, 0), (0o660, 0), (0o600, 1)])
def test_a_pin_that_others_can_read_is_a_secret_no_more(pin_file: Path, mode: int, owner: int) -> None:
    pin_file.chmod(mode)
    os.chown(pin_file, owner, 0)
    done = told("--pkcs11", f"{URI}&pin-source={pin_file}")
    assert done.exit_code == 2
    assert "others than root can read or write it" in done.stderr
    assert "2468" not in done.output


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--pkcs11", "pkcs11:token=t"], "module-path has to name"),
        (["--pkcs11", f"{URI}&pin-value=2468"], "pin-value"),
        (["--pkcs11", f"{URI}&pin-source=/nowhere/pin"], "/nowhere/pin"),
        (["--pkcs11", URI], "nobody is here to be asked"),
        (["--pkcs11", URI, "--pkcs11-path", "etc"], "not a full path"),
        (["--pkcs11", URI, "--pkcs11-path", "/nowhere"], "not there"),
        (["--pkcs11", URI, "--pkcs11-path", "/proc/self"], "kept out"),
        (["--pkcs11", URI, "--pkcs11-path", "/"], "kept out"),
        (["--pkcs11", URI, "--pkcs11-env", "NAME"], "'NAME' has no value"),
    ],
)
def test_what_is_wrong_is_told_and_ends_the_command(words: list[str], why: str) -> None:
    done = told(*words)
    assert done.exit_code == 2
    assert why in done.stderr


def test_a_pin_is_asked_for_on_a_terminal_and_never_shown(monkeypatch: pytest.MonkeyPatch, pin_file: Path) -> None:
    monkeypatch.setattr("mitmsec.service.token_options.has_terminal", lambda: True)
    done = CliRunner().invoke(ordered, ["--pkcs11", URI], input="2468\n")
    assert msgspec.json.decode(done.stdout)["reference"]["pin"] == "2468"
    assert "2468" not in done.stderr
    assert "PIN of the token t" in done.stderr
    assert CliRunner().invoke(ordered, ["--pkcs11", URI], input="\x07\n").exit_code == 2
    assert CliRunner().invoke(asked, ["--pin-source", str(pin_file)]).stdout == "2468\n"
