"""A root goes into the stores that the selected programs read, and into no other."""

from __future__ import annotations

import pytest

from mitmsec.core.rules import Application
from mitmsec_certs.truststore.needs import needs_of
from mitmsec_certs.truststore.plan import StoreName

S, F, C, J = StoreName.SYSTEM, StoreName.FIREFOX, StoreName.CHROMIUM, StoreName.JAVA


@pytest.mark.checklist("K8")
@pytest.mark.parametrize(
    ("glob", "stores"),
    [
        ("/usr/bin/curl", {S}),
        ("/usr/lib/firefox/firefox", {F}),
        ("/usr/lib/firefox/*", {F}),
        ("/snap/firefox/*", {F}),
        ("/usr/lib/firefox-esr/firefox-esr", {F}),
        ("*/firefox", {F}),
        ("/opt/google/chrome/chrome", {C}),
        ("/opt/google/*", {S, C}),
        ("/usr/lib/chromium/*", {C}),
        ("C:\\Program Files\\*\\chrome.exe", {C}),
        ("/usr/lib/jvm/java-21-openjdk-amd64/bin/java", {J}),
        ("/usr/lib/jvm/*", {S, J}),
        ("/usr/bin/python3*", {S}),
        ("/usr/bin/*", {S, F, C, J}),
        ("*", {S, F, C, J}),
        ("/usr/bin/javascript-thing", {S}),
    ],
)
def test_a_path_says_which_stores_its_program_reads(glob: str, stores: set[StoreName]) -> None:
    needs = needs_of([Application(name="it", path=(glob,))])
    assert (set(needs.stores), needs.unknown) == (stores, ())


@pytest.mark.parametrize(
    ("name", "stores"), [("firefox", {F}), ("java", {J}), ("curl", {S}), ("*", {S, F, C, J}), ("fire*", {S, F})]
)
def test_so_does_a_name(name: str, stores: set[StoreName]) -> None:
    assert set(needs_of([Application(name="it", process_name=(name,))]).stores) == stores


def test_each_store_is_told_with_those_who_need_it() -> None:
    browsers = Application(name="browsers", path=("/usr/lib/firefox/*", "/usr/lib/chromium/*"))
    scripts = Application(name="scripts", path=("/usr/bin/curl",))
    second = Application(name="another", path=("/opt/firefox/firefox",))
    needs = needs_of([browsers, scripts, second])
    assert needs.stores == {F: ("browsers", "another"), C: ("browsers",), S: ("scripts",)}


@pytest.mark.checklist("K8")
@pytest.mark.parametrize(
    "application",
    [
        Application(name="it", user=("ann",)),
        Application(name="it", sha256=("ab" * 32,)),
        Application(name="it", pid=(7,)),
        Application(name="it", container=("docker:*",)),
        Application(name="it", service=("cups.service",)),
    ],
    ids=["user", "sha256", "pid", "container", "service"],
)
def test_who_is_not_selected_by_path_may_be_anything(application: Application) -> None:
    assert needs_of([application]) == ({}, ("it",))


def test_nobody_needs_nothing() -> None:
    assert needs_of([]) == ({}, ())
