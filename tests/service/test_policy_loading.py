"""A policy and all that it names, as commands get it."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mitmsec.service import policy_loading
from mitmsec.service.policy_loading import load
from mitmsec_addons.yara_rules import RuleFile
from mitmsec_certs.bundle import certificates_in
from mitmsec_certs.origin_pki import origin_pki

GOOD = 'version = 1\n[[rule]]\nname = "banks"\nhost = ["*.bank.example"]\naction = "bypass"\n'


def test_the_policy_comes_with_its_text(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(GOOD)
    loaded = load(path)
    assert (loaded.text, loaded.roots, loaded.keys) == (GOOD, (), None)
    assert [rule.name for rule in loaded.policy.rules] == ["banks"]
    loaded.forget_keys()


def test_every_error_is_told_and_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.toml"
    path.write_text('version = 2\ncolour = "red"\n[inspector.keywords]\nwords = ["Adler"]\n')
    for as_json in (False, True):
        with pytest.raises(SystemExit) as ended:
            load(path, as_json=as_json)
        assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[:2] == [
        f"{path}:1: version: only version = 1 is known here, not the number 2",
        f"{path}:2: colour: unknown key",
    ]
    assert said.out.count('"valid":false') == 2


def test_an_inspector_that_fails_as_it_is_made_is_an_error_of_the_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(words: tuple[str, ...]) -> Any:
        raise KeyError(words[0])

    path = tmp_path / "p.toml"
    path.write_text('version = 1\n[inspector.own]\nwords = ["adler"]\n' + GOOD.partition("\n")[2])
    with pytest.raises(SystemExit):
        load(path, others={"own": make})
    told = capsys.readouterr().err
    assert "the inspector fails when it is made: KeyError" in told
    assert "adler" not in told


def test_further_roots_are_read_beside_the_policy_and_each_file_must_hold_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pki = origin_pki("Corp", ("a.example",), int(time.time()))
    file = tmp_path / "p.toml"
    (tmp_path / "corp.pem").write_bytes(b"# Corp\n" + pki.root)
    file.write_text('version = 1\n[defaults]\nupstream_roots = ["corp.pem"]\n')
    loaded = load(file)
    assert loaded.roots == certificates_in(pki.root)
    assert loaded.policy.root_sha256s == tuple(hashlib.sha256(root).hexdigest() for root in loaded.roots)
    broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    (tmp_path / "broken.pem").write_bytes(pki.root + broken.encode())
    (tmp_path / "none.pem").write_text("no certificate")
    file.write_text('version = 1\n[defaults]\nupstream_roots = ["broken.pem",\n"none.pem",\n"gone.pem"]\n')
    with pytest.raises(SystemExit):
        load(file)
    assert capsys.readouterr().err.splitlines()[:3] == [
        f"{file}:3: defaults.upstream_roots[0]: broken.pem: block 2 is not a certificate that can be read",
        f"{file}:4: defaults.upstream_roots[1]: none.pem: no certificate in PEM form in it",
        f"{file}:5: defaults.upstream_roots[2]: cannot read gone.pem: No such file or directory",
    ]


def test_keys_of_services_come_behind_a_descriptor_where_something_is_decrypted_with_them(tmp_path: Path) -> None:
    chain, key = origin_pki("Shop", ("shop.example",), int(time.time())).servers["shop.example"]
    (tmp_path / "shop.pem").write_bytes(chain)
    (tmp_path / "shop.key").write_bytes(key)
    (tmp_path / "shop.key").chmod(0o600)
    file = tmp_path / "p.toml"
    service = '[[inbound]]\nname = "shop"\ncertificate = "shop.pem"\nkey = "shop.key"\n'
    file.write_text(f"version = 1\n{service}")
    assert load(file).keys is None
    file.write_text(f'version = 1\n[defaults]\ninbound = "decrypt"\n{service}')
    loaded = load(file)
    assert loaded.keys is not None
    assert os.pread(loaded.keys, 1 << 20, 0) == key
    assert loaded.policy.services[0].chain == certificates_in(chain)
    loaded.forget_keys()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(loaded.keys)


def test_keys_of_clients_stand_in_front_of_those_of_services_which_are_there_only_where_they_decrypt(
    tmp_path: Path,
) -> None:
    keys = {}
    for name, made in origin_pki("Both", ("shop.example", "client.example"), int(time.time())).servers.items():
        short = name.partition(".")[0]
        (tmp_path / f"{short}.pem").write_bytes(made[0])
        (tmp_path / f"{short}.key").write_bytes(made[1])
        (tmp_path / f"{short}.key").chmod(0o600)
        keys[short] = made[1]
    file = tmp_path / "p.toml"
    sections = (
        '[[inbound]]\nname = "shop"\ncertificate = "shop.pem"\nkey = "shop.key"\n'
        '[[client_certificate]]\nname = "us"\ncertificate = "client.pem"\nkey = "client.key"\n'
    )
    for inbound, expected in (("bypass", keys["client"]), ("decrypt", keys["client"] + keys["shop"])):
        file.write_text(f'version = 1\n[defaults]\ninbound = "{inbound}"\n{sections}')
        loaded = load(file)
        assert loaded.keys is not None
        assert os.pread(loaded.keys, 1 << 20, 0) == expected
        loaded.forget_keys()


SCANNING = """version = 1
[inspector.yara]
rules = ["@own.yar"]
[[rule]]
name = "r"
action = "decrypt"
inspect = ["yara"]
"""


def test_rules_come_with_the_policy_and_are_not_compiled_yet(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(SCANNING)
    (tmp_path / "own.yar").write_text("no rules")
    assert load(tmp_path / "p.toml").rules == (RuleFile(name="own.yar", text="no rules"),)


def test_where_there_is_no_yara_x_a_policy_that_names_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(policy_loading, "find_spec", lambda name: None)
    (tmp_path / "p.toml").write_text(SCANNING)
    (tmp_path / "own.yar").write_text("rule a { condition: filesize > 3 }")
    with pytest.raises(SystemExit):
        load(tmp_path / "p.toml")
    assert f"{tmp_path}/p.toml:3: inspector.yara.rules: yara-x is not installed" in capsys.readouterr().err
