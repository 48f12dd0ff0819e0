"""Which stores a machine has: looked for in trees that have them, and in homes with their owners' rights."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

import pytest
from trust_stage import debian_tree, nss_home

from mitmsec_certs.truststore.found import Home, stores
from mitmsec_certs.truststore.plan import Layout, StoreName

PROFILES = {
    ".mozilla/firefox/abc.default": StoreName.FIREFOX,
    "snap/firefox/common/.mozilla/firefox/def.default": StoreName.FIREFOX,
    ".var/app/org.mozilla.firefox/.mozilla/firefox/ghi.default": StoreName.FIREFOX,
    ".config/mozilla/firefox/jkl.default": StoreName.FIREFOX,
    ".pki/nssdb": StoreName.CHROMIUM,
    ".local/share/pki/nssdb": StoreName.CHROMIUM,
    "snap/chromium/2345/.pki/nssdb": StoreName.CHROMIUM,
    ".var/app/org.chromium.Chromium/.pki/nssdb": StoreName.CHROMIUM,
}


def test_each_profile_of_a_home_is_a_store(tmp_path: Path) -> None:
    home = nss_home(tmp_path / "home", *PROFILES)
    (tmp_path / "home/snap/chromium/current").symlink_to("2345")
    (tmp_path / "home/.mozilla/firefox/Crash Reports").mkdir()
    found = stores([home], str(tmp_path / "no machine"))
    assert {(store.place.removeprefix(f"{tmp_path}/home/"), store.name) for store in found} == set(PROFILES.items())
    assert len(found) == len(PROFILES)
    assert {(store.layout, store.user) for store in found} == {(Layout.NSS, "tester")}


def test_javas_are_found_once_each_and_with_their_own_tool(tmp_path: Path) -> None:
    if shutil.which("keytool") is None:
        pytest.skip("keytool is missing (Debian package default-jre-headless)")
    for java in ("opt/jdk", "usr/lib/jvm/other", "home/.sdkman/candidates/java/21"):
        (tmp_path / java / "lib/security").mkdir(parents=True)
        (tmp_path / java / "lib/security/cacerts").write_bytes(b"")
    (tmp_path / "usr/lib/jvm/default").symlink_to("other")
    (tmp_path / "opt/jdk/bin").mkdir()
    own = tmp_path / "opt/jdk/bin/keytool"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    found = stores([Home(os.getuid(), "tester", str(tmp_path / "home"))], str(tmp_path))
    assert {store.place.removeprefix(str(tmp_path)): store.keytool for store in found} == {
        "/opt/jdk/lib/security/cacerts": str(own),
        "/usr/lib/jvm/other/lib/security/cacerts": shutil.which("keytool"),
        "/home/.sdkman/candidates/java/21/lib/security/cacerts": shutil.which("keytool"),
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_java_that_a_user_could_exchange_is_that_users_and_root_runs_nothing_of_it(tmp_path: Path) -> None:
    """Else whoever owns an IDE in /opt would be root with the next `ca trust java`."""
    nobody = pwd.getpwnam("nobody").pw_uid
    ide, shared, mixed = (java_home(tmp_path / "opt" / name) for name in ("ide", "shared", "mixed"))
    unknown = java_home(tmp_path / "opt/unknown")
    for path in (ide, *ide.rglob("*"), mixed / "bin"):
        os.chown(path, nobody, nobody)
    os.chown(unknown, 123456, -1)
    (shared / "lib").chmod(0o777)
    found = {store.place.removeprefix(f"{tmp_path}/opt/"): store for store in stores([], str(tmp_path))}
    assert {place: store.uid for place, store in found.items()} == {
        "ide/lib/security/cacerts": nobody,
        "mixed/lib/security/cacerts": 0,
        "unknown/lib/security/cacerts": 123456,
    }, "what everybody may write to is nobody's to change"
    assert found["ide/lib/security/cacerts"].keytool == str(ide / "bin/keytool")
    assert found["ide/lib/security/cacerts"].user == "nobody"
    assert found["mixed/lib/security/cacerts"].keytool == (shutil.which("keytool") or "")


def java_home(folder: Path) -> Path:
    (folder / "lib/security").mkdir(parents=True)
    (folder / "lib/security/cacerts").write_bytes(b"")
    (folder / "bin").mkdir()
    (folder / "bin/keytool").write_text("#!/bin/sh\n")
    (folder / "bin/keytool").chmod(0o755)
    return folder


def test_debian_has_java_in_it_only_where_its_hook_is(tmp_path: Path) -> None:
    store = debian_tree(tmp_path)
    assert store.keytool == ""
    (tmp_path / "etc/ssl/certs/java").mkdir()
    (tmp_path / "etc/ssl/certs/java/cacerts").touch()
    assert stores([], str(tmp_path))[0].keytool == ""
    (tmp_path / "etc/ca-certificates/update.d/jks-keystore").touch()
    assert stores([], str(tmp_path))[0].keytool == (shutil.which("keytool") or "")


def test_rhels_layout_is_known_by_its_anchors(tmp_path: Path) -> None:
    (tmp_path / "etc/pki/ca-trust/source/anchors").mkdir(parents=True)
    (store,) = stores([], str(tmp_path))
    assert (store.layout, store.place) == (Layout.RHEL, f"{tmp_path}/etc/pki/ca-trust")


def test_a_machine_without_any_has_none(tmp_path: Path) -> None:
    assert stores([], str(tmp_path)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_is_not_the_owners_own_is_left_alone(tmp_path: Path) -> None:
    """A link to somebody else's database, say."""
    home = nss_home(tmp_path / "home", ".pki/nssdb")
    nobody = pwd.getpwnam("nobody")
    for folder in (tmp_path / "home", *(parent for parent in tmp_path.parents if parent != Path("/")), tmp_path):
        folder.chmod(folder.stat().st_mode | 0o055)
    other = Home(nobody.pw_uid, "nobody", str(tmp_path / "home"))
    assert stores([other], str(tmp_path / "no machine")) == []
    assert len(stores([home], str(tmp_path / "no machine"))) == 1


def test_everybody_with_a_home_is_asked() -> None:
    """Of this machine itself only what can be said without touching it: whatever is found belongs to its owner."""
    for store in stores():
        assert Path(store.place).is_absolute()
        if store.layout is Layout.NSS:
            assert Path(store.place, "cert9.db").stat().st_uid == store.uid
