"""Policies by their fingerprints: whole or not there, bounded, and the same after whatever happened to the writer."""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
import os
import signal
import stat
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from mitmsec.core.host_lists import HostList
from mitmsec.core.model import Action
from mitmsec.core.policy import DEFAULT_POLICY, Policy, Rule
from mitmsec.service import policy_versions
from mitmsec.service.policy_versions import NoVersion, PolicyVersions


def numbered(number: int, hosts: int = 1) -> Policy:
    names = tuple(f"{place}.{number}.example" for place in range(hosts))
    return Policy(rules=(Rule(name=f"rule {number}", action=Action.BYPASS, host=names),))


def path_of(folder: Path, policy: Policy) -> Path:
    return folder / f"{policy.fingerprint}.json.gz"


def aged(folder: Path, *policies: Policy) -> None:
    """The first was loaded longest ago."""
    for place, policy in enumerate(policies):
        os.utime(path_of(folder, policy), ns=(0, (place + 1) * 10**9))


def test_what_is_kept_under_a_fingerprint_is_what_it_is_the_hash_of(tmp_path: Path) -> None:
    versions, policy = PolicyVersions(tmp_path), numbered(1, hosts=50)
    assert versions.keep(policy) == ()
    assert hashlib.sha256(gzip.decompress(path_of(tmp_path, policy).read_bytes())).hexdigest() == policy.fingerprint
    assert versions.read(policy.fingerprint) == policy
    assert versions.read(policy.fingerprint).rules[0].host[49] == "49.1.example"


BIG = HostList.of("@big", "\n".join(f"{number}.example" for number in range(2000)))
SMALL = HostList.of("@small", "bank.example")


def listing(number: int, *lists: HostList) -> Policy:
    return replace(numbered(number), lists=lists)


def lists_in(folder: Path) -> set[str]:
    return {path.name.removesuffix(".names.gz") for path in folder.glob("*.names.gz")}


def test_a_list_is_kept_once_by_its_own_hash_and_comes_back_with_each_version(tmp_path: Path) -> None:
    versions, policies = PolicyVersions(tmp_path), [listing(1, BIG), listing(2, BIG, SMALL)]
    for policy in policies:
        versions.keep(policy)
        assert versions.read(policy.fingerprint) == policy
    assert lists_in(tmp_path) == {BIG.sha256, SMALL.sha256}
    assert b"1999.example" not in gzip.decompress(path_of(tmp_path, policies[0]).read_bytes())
    kept = (tmp_path / f"{BIG.sha256}.names.gz").read_bytes()
    assert hashlib.sha256(gzip.decompress(kept)).hexdigest() == BIG.sha256


@pytest.mark.parametrize(
    ("damage", "says"),
    [(b"", "as its list @small is another one"), (b"no gzip", "its list @small cannot be read")],
)
def test_a_list_that_is_not_what_it_was_is_told_and_mended_by_the_next_load(
    tmp_path: Path, damage: bytes, says: str
) -> None:
    versions, policy = PolicyVersions(tmp_path), listing(1, SMALL)
    versions.keep(policy)
    (tmp_path / f"{SMALL.sha256}.names.gz").write_bytes(damage)
    with pytest.raises(NoVersion, match=says):
        versions.read(policy.fingerprint)
    versions.keep(policy)
    assert versions.read(policy.fingerprint) == policy


def test_a_list_goes_with_the_last_version_that_refers_to_it(tmp_path: Path) -> None:
    versions = PolicyVersions(tmp_path, limit=2)
    one, two, three, four = listing(1, BIG), listing(2, BIG, SMALL), listing(3, SMALL), listing(4)
    for policy in (one, two):
        versions.keep(policy)
    aged(tmp_path, one, two)
    assert versions.keep(three) == (one.fingerprint,)
    assert lists_in(tmp_path) == {BIG.sha256, SMALL.sha256}
    aged(tmp_path, two, three)
    (tmp_path / f"{'0' * 64}.names.gz").write_bytes(b"nobody's")
    assert versions.keep(four) == (two.fingerprint,)
    assert lists_in(tmp_path) == {SMALL.sha256}
    assert versions.read(three.fingerprint) == three


def test_kept_lists_count_for_the_bound_in_bytes(tmp_path: Path) -> None:
    PolicyVersions(tmp_path).keep(listing(1, BIG))
    aged(tmp_path, listing(1, BIG))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert PolicyVersions(tmp_path, limit_bytes=size).keep(numbered(2)) == (listing(1, BIG).fingerprint,)
    assert lists_in(tmp_path) == set()


def test_a_kept_policy_is_its_groups_to_read_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        PolicyVersions(tmp_path).keep(DEFAULT_POLICY)
    finally:
        os.umask(before)
    found = path_of(tmp_path, DEFAULT_POLICY).stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o640, os.getuid())


def test_of_more_versions_than_may_be_kept_the_one_loaded_longest_ago_goes_and_is_told(tmp_path: Path) -> None:
    versions = PolicyVersions(tmp_path, limit=3)
    one, two, three, four, five = map(numbered, range(5))
    for policy in (one, two, three):
        versions.keep(policy)
    aged(tmp_path, one, two, three)
    versions.keep(one)  # once more: it is the newest now
    assert versions.keep(four) == (two.fingerprint,)
    aged(tmp_path, three, one, four)
    assert versions.keep(five, in_force=[three.fingerprint]) == (one.fingerprint,)  # what decides now stays
    assert versions.read(three.fingerprint) == three
    with pytest.raises(NoVersion, match="is not kept"):
        versions.read(two.fingerprint)


def test_kept_policies_are_bounded_by_their_size_too(tmp_path: Path) -> None:
    small, large = numbered(1), numbered(2, hosts=1000)
    PolicyVersions(tmp_path).keep(large)
    aged(tmp_path, large)
    size = path_of(tmp_path, large).stat().st_size
    assert PolicyVersions(tmp_path, limit_bytes=size).keep(small) == (large.fingerprint,)
    assert PolicyVersions(tmp_path, limit_bytes=1).keep(large, in_force=[small.fingerprint]) == ()


def test_a_damaged_version_is_never_taken_for_the_policy_and_is_mended_by_the_next_load(tmp_path: Path) -> None:
    versions, policy = PolicyVersions(tmp_path), numbered(1, hosts=100)
    versions.keep(policy)
    path = path_of(tmp_path, policy)
    whole = path.read_bytes()
    for damage, why in (
        (gzip.compress(numbered(2).encoded), "another one"),
        (whole[:-30], "cannot be read"),
        (b"nothing of the kind", "cannot be read"),
        (whole[:20] + b"\xff\xff" + whole[22:], "cannot be read"),
    ):
        path.write_bytes(damage)
        with pytest.raises(NoVersion, match=why):
            versions.read(policy.fingerprint)
        versions.keep(policy)
        assert versions.read(policy.fingerprint) == policy


def test_what_was_put_there_by_another_hand_is_no_version_and_names_no_file_elsewhere(tmp_path: Path) -> None:
    versions, folder = PolicyVersions(tmp_path / "kept", limit=1), tmp_path / "kept"
    folder.mkdir()
    (elsewhere := tmp_path / "x.names.gz").write_bytes(gzip.compress(b"bank.example"))
    for reference, says in (
        (replace(SMALL, size_bytes=5), "12 bytes are not"),
        (replace(SMALL, sha256="../x"), "../x"),
    ):
        versions.keep(listing(1, SMALL))
        planted = replace(listing(2), lists=(reference,))
        path_of(folder, planted).write_bytes(gzip.compress(planted.encoded))
        with pytest.raises(NoVersion, match=says):
            versions.read(planted.fingerprint)
        aged(folder, planted)
        assert versions.keep(listing(3, SMALL))
    assert elsewhere.exists()


def test_a_file_that_unpacks_without_end_is_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions, policy = PolicyVersions(tmp_path), listing(1, SMALL)
    versions.keep(policy)
    monkeypatch.setattr(policy_versions, "WHOLE_LIMIT_BYTES", 10)
    with pytest.raises(NoVersion, match="it unpacks to more than 10 bytes"):
        versions.read(policy.fingerprint)


def test_a_version_of_another_mitmsec_is_said_to_be_one(tmp_path: Path) -> None:
    encoded = b'{"action": "teleport"}'
    fingerprint = hashlib.sha256(encoded).hexdigest()
    (tmp_path / f"{fingerprint}.json.gz").write_bytes(gzip.compress(encoded))
    with pytest.raises(NoVersion, match="another version of mitmsec"):
        PolicyVersions(tmp_path).read(fingerprint)


@pytest.mark.parametrize("text", ["", "../../etc/passwd", "AB" * 32, "0" * 63])
def test_what_is_no_fingerprint_is_looked_for_nowhere(tmp_path: Path, text: str) -> None:
    with pytest.raises(NoVersion, match="no fingerprint"):
        PolicyVersions(tmp_path).read(text)


def test_a_reader_without_rights_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(policy_versions.gzip, "open", denied)
    with pytest.raises(PermissionError):
        PolicyVersions(tmp_path).read("0" * 64)


def test_what_an_interrupted_writer_left_is_neither_read_nor_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "writing").write_bytes(b"half of")
    (tmp_path / "note.txt").write_bytes(b"somebody's")
    versions = PolicyVersions(tmp_path, limit=1)
    versions.keep(DEFAULT_POLICY)
    assert versions.read(DEFAULT_POLICY.fingerprint) == DEFAULT_POLICY
    assert {path.name for path in tmp_path.iterdir()} == {"note.txt", path_of(tmp_path, DEFAULT_POLICY).name}


def keep_for_ever(folder: Path) -> None:
    versions = PolicyVersions(folder, limit=20)
    for number in range(10**6):
        versions.keep(numbered(number, hosts=200))


def test_whenever_its_writer_is_killed_every_version_that_has_a_name_is_whole(tmp_path: Path) -> None:
    for pause_s in (0.05, 0.08, 0.11):
        writer = multiprocessing.get_context("fork").Process(target=keep_for_ever, args=(tmp_path,))
        writer.start()
        assert writer.pid is not None
        before = time.monotonic()
        while not any(tmp_path.glob("*.gz")) and time.monotonic() < before + 10:
            time.sleep(0.005)
        time.sleep(pause_s)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        found = [path.name.removesuffix(".json.gz") for path in tmp_path.glob("*.gz")]
        assert found
        assert len(found) <= 21  # one more, where it was killed before it could make room
        versions = PolicyVersions(tmp_path)
        assert all(versions.read(fingerprint).fingerprint == fingerprint for fingerprint in found)
