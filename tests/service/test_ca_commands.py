"""`mitmsec ca show` and `ca issued` as people and scripts use them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from audit_events import connection, log_of
from click.testing import CliRunner, Result

from mitmsec.audit.event import CertificateSeen
from mitmsec.service.ca_commands import ca
from mitmsec_certs.keystore import open_keystore

NOW_S = int(time.time())


def mitmsec(state: Path, *words: str) -> Result:
    return CliRunner().invoke(ca, [*words, "--state", str(state)], env={"COLUMNS": "160"})


def test_without_a_ca_show_says_how_to_make_one(tmp_path: Path) -> None:
    result = mitmsec(tmp_path, "show")
    assert result.exit_code == 1
    assert "ca init" in result.stderr
    assert mitmsec(tmp_path, "show", "--json").stdout == "null\n"


def test_show_tells_the_ca_in_words_and_as_json(tmp_path: Path) -> None:
    store = open_keystore(tmp_path / "ca", "host", NOW_S)
    words = mitmsec(tmp_path, "show")
    assert words.exit_code == 0
    assert "automatic" in words.stdout
    assert store.root_sha256 in words.stdout
    assert "every name" in words.stdout
    told = json.loads(mitmsec(tmp_path, "show", "--json").stdout)
    assert told["root"]["sha256"] == store.root_sha256
    assert told["issuing"]["path_length"] == 0


def test_show_names_a_file_that_is_damaged(tmp_path: Path) -> None:
    open_keystore(tmp_path / "ca", "host", NOW_S)
    (tmp_path / "ca" / "issuing.pem").write_text("")
    result = mitmsec(tmp_path, "show")
    assert result.exit_code == 1
    assert "issuing.pem: not a certificate. " in result.stderr


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    leaves = [
        CertificateSeen(flow="flow-1", serial="0a" * 16, names=("api.example.com",), not_after="2027-01-01T00:00:00Z"),
        CertificateSeen(
            flow="flow-2", serial="0b" * 16, names=("old.test",), not_after="2020-01-01T00:00:00Z", flaw="expired"
        ),
    ]
    log_of(tmp_path / "log", [*leaves, connection("flow-1")])
    return tmp_path


@pytest.mark.checklist("K5")
def test_every_leaf_is_listed_with_serial_name_program_and_rule(state: Path) -> None:
    result = mitmsec(state, "issued", "--json")
    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["serial"], first["names"]) == ("0a" * 16, ["api.example.com"])
    assert first["process"]["exe"] == "/usr/bin/curl"
    assert first["rule"] == "defaults"
    assert (second["flaw"], second["process"], second["rule"]) == ("expired", None, None)
    words = mitmsec(state, "issued").stdout
    assert "old.test (expired)" in words
    assert "curl" in words


@pytest.mark.parametrize(
    ("words", "serials"), [(["--host", "example.com"], ["0a" * 16]), (["--limit", "1"], ["0b" * 16])]
)
def test_issued_takes_filters(state: Path, words: list[str], serials: list[str]) -> None:
    lines = mitmsec(state, "issued", "--json", *words).stdout.splitlines()
    assert [json.loads(line)["serial"] for line in lines] == serials


def test_a_log_without_leaves_says_so(state: Path) -> None:
    result = mitmsec(state, "issued", "--host", "nowhere.test")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no leaf was issued" in result.stderr
