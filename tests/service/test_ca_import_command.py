"""`mitmsec ca import` as an operator uses it."""

from __future__ import annotations

import os
import ssl
import subprocess
from pathlib import Path

import pytest
from ca_house import WORD, CaHouse
from enterprise import Made, answer_to, between, certified, root, rsa_key

from mitmsec.service import ca_journal, ca_work

pytestmark = pytest.mark.root

ROOT = root()
POLICY = between(ROOT)
SUB = certified("Corp Interception", POLICY)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaHouse:
    monkeypatch.setattr(ca_work, "announce", lambda state: None)
    return CaHouse(tmp_path)


def laid(house: CaHouse, name: str, data: bytes) -> str:
    path = house.folder / name
    path.write_bytes(data)
    path.chmod(0o600)
    return str(path)


def files_of(house: CaHouse, sub: Made = SUB) -> list[str]:
    return [laid(house, "sub.pem", sub.pem), laid(house, "above.pem", POLICY.pem + ROOT.pem)]


def test_pem_with_a_key_in_a_file_of_its_own(house: CaHouse) -> None:
    done = house.mitmsec("import", *files_of(house), "--key", laid(house, "sub.key", SUB.key_pem()))
    assert done.exit_code == 0, done.output
    told = house.shown()
    assert (told["kind"], told["root"]["subject"]) == ("imported", "CN=Corp Root")
    assert told["issuing"]["subject"] == "CN=Corp Interception"
    assert [one["subject"] for one in told["above"]] == ["CN=Corp Policy CA"]
    assert told["issuing"]["permitted"] == ["corp.example", "0.0.0.0/0", "::/0"]  # of addresses it says nothing
    assert house.issuing_key() == SUB.spki
    assert [seen.operation for seen in ca_journal.left(house.state)] == ["imported"]
    assert "remove the file" in done.stderr


def test_pkcs12_with_its_passphrase(house: CaHouse) -> None:
    file = laid(house, "sub.p12", SUB.p12([POLICY, ROOT], WORD.encode()))
    done = house.mitmsec("import", file, "--passphrase-file", str(house.word))
    assert done.exit_code == 0, done.output
    assert house.issuing_key() == SUB.spki
    house.write_word("another passphrase")
    done = house.mitmsec("import", file, "--passphrase-file", str(house.word))
    assert done.exit_code == 1
    assert "cannot be opened" in done.stderr


def test_leaves_of_an_imported_ca_are_accepted_by_whoever_trusts_the_enterprises_root(
    house: CaHouse, tmp_path: Path
) -> None:
    """With an RSA key too; and the chain that is sent leads up to the root."""
    sub = certified("Corp Interception", POLICY, key=rsa_key())
    done = house.mitmsec("import", *files_of(house, sub), "--key", laid(house, "sub.key", sub.key_pem()))
    assert done.exit_code == 0, done.output
    leaf, *sent = house.leaf("www.corp.example")
    (tmp_path / "root.pem").write_bytes(ROOT.pem)
    (tmp_path / "sent.pem").write_text("".join(map(ssl.DER_cert_to_PEM_cert, sent)))
    (tmp_path / "leaf.pem").write_text(ssl.DER_cert_to_PEM_cert(leaf))
    command = ["openssl", "verify", "-purpose", "sslserver", "-CAfile", "root.pem", "-untrusted", "sent.pem"]
    said = subprocess.run([*command, "leaf.pem"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said.stdout == "leaf.pem: OK\n", said.stderr


def test_the_answer_to_a_request_is_taken_and_the_key_never_left(house: CaHouse) -> None:
    asked = house.mitmsec("init", "--permit", "corp.example", "--csr", str(house.folder / "sub.csr"))
    assert asked.exit_code == 0, asked.output
    assert str(house.folder / "sub.csr") in asked.stdout
    answer = answer_to((house.folder / "sub.csr").read_bytes(), POLICY)
    done = house.mitmsec("import", laid(house, "answer.pem", answer), files_of(house)[1])
    assert done.exit_code == 0, done.output
    assert house.shown()["kind"] == "imported"
    assert [seen.operation for seen in ca_journal.left(house.state)] == ["requested", "imported"]
    again = house.mitmsec("init", "--csr", str(house.folder / "sub.csr"))
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_without_a_key_and_without_a_request_it_says_what_to_do(house: CaHouse) -> None:
    done = house.mitmsec("import", *files_of(house))
    assert done.exit_code == 1
    assert "no request waits" in done.stderr
    assert "--csr" in done.stderr


@pytest.mark.checklist("K9")
def test_a_key_in_clear_that_others_can_read_is_not_taken(house: CaHouse) -> None:
    file = laid(house, "sub.key", SUB.key_pem())
    Path(file).chmod(0o644)
    done = house.mitmsec("import", *files_of(house), "--key", file)
    assert done.exit_code == 1
    assert "others can read the key" in done.stderr
    assert house.mitmsec("show").exit_code == 1


def test_a_key_of_another_user_is_not_taken_nor_a_file_that_no_ca_has(house: CaHouse) -> None:
    sub = laid(house, "sub.key", SUB.key_pem())
    os.chown(sub, 12345, -1)
    done = house.mitmsec("import", *files_of(house), "--key", sub)
    assert done.exit_code == 1
    assert "owned by uid 12345" in done.stderr
    done = house.mitmsec("import", laid(house, "huge", bytes((1 << 20) + 1)))
    assert done.exit_code == 2
    assert "more than 1 MiB" in done.stderr


def test_what_is_unsuitable_is_refused_with_every_reason_and_changes_nothing(house: CaHouse) -> None:
    house.make_automatic()
    before = house.shown()
    bad = certified("bad", POLICY, usage=False, days=(-300, -1))
    done = house.mitmsec("import", *files_of(house, bad), "--key", laid(house, "sub.key", bad.key_pem()))
    assert done.exit_code == 1
    assert "keyCertSign is missing" in done.stderr
    assert "not valid now" in done.stderr
    assert house.shown() == before


def test_a_broad_ca_is_taken_by_word_only_and_that_is_on_record(house: CaHouse) -> None:
    broad = certified("broad", POLICY, limit=None, path_length=None)
    words = ["import", *files_of(house, broad), "--key", laid(house, "sub.key", broad.key_pem())]
    done = house.mitmsec(*words)
    assert done.exit_code == 1
    assert "--accept-broad" in done.stderr
    assert house.mitmsec(*words, "--accept-broad").exit_code == 0
    (seen,) = ca_journal.left(house.state)
    assert "may speak for every name" in seen.detail
    assert "path length 0 is missing" in seen.detail


def test_it_can_wait_beside_the_ca_that_serves(house: CaHouse) -> None:
    house.make_automatic()
    before = house.shown()
    key = laid(house, "sub.key", SUB.key_pem())
    assert house.mitmsec("import", *files_of(house), "--key", key, "--wait").exit_code == 0
    overlap = house.shown()
    assert overlap["root"] == before["root"]
    assert overlap["trusted"] == [before["root"]["sha256"], overlap["next"]["root"]["sha256"]]
    assert house.mitmsec("rotate", "--take-over").exit_code == 0
    assert house.shown()["kind"] == "imported"
    refused = house.mitmsec("rotate")
    assert refused.exit_code == 1
    assert "ca import" in refused.stderr
    assert "ca init --csr" in house.with_word("init").stderr


def test_show_says_in_words_how_far_each_of_the_two_may_go(house: CaHouse) -> None:
    house.make_automatic()
    broad = certified("broad", POLICY, path_length=None)
    words = ["import", *files_of(house, broad), "--key", laid(house, "sub.key", broad.key_pem())]
    done = house.mitmsec(*words, "--accept-broad", "--wait")
    assert "this CA waits; it may speak for corp.example, every IPv4 address, every IPv6 address" in done.stderr
    told = house.mitmsec("show").stdout
    assert "None" not in told
    assert "no limit to its path length" in told
    assert ["every name" in told, "corp.example, every IPv4 address, every IPv6 address" in told] == [True, True]


def test_files_that_are_not_there_and_keys_that_are_too_many_are_usage(house: CaHouse) -> None:
    assert house.mitmsec("import", "/nowhere.pem").exit_code == 2
    two = [laid(house, name, certified(name, ROOT).key_pem()) for name in ("a.pem", "b.pem")]
    assert house.mitmsec("import", *two).exit_code == 2
