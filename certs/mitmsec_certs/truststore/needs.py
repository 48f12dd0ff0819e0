"""Which stores the programs of a policy read: a root goes into those, and into no other.

What a program reads is told by where it lies. A glob that names a browser or a Java is for that one's stores; any other
is for the system's, and for those of each browser and Java that it would select too. An application that is not
selected by path or name may be anything: for that one the operator has to say it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mitmsec.core.rules import Application
from mitmsec.core.selector import path_matches
from mitmsec_certs.truststore.plan import StoreName

# Names of programs, and where they usually lie.
READERS: dict[StoreName, tuple[frozenset[str], tuple[str, ...]]] = {
    StoreName.FIREFOX: (
        frozenset({"firefox", "firefox-bin", "firefox-esr", "librewolf"}),
        (
            "/usr/lib/firefox/firefox",
            "/usr/lib/firefox-esr/firefox-esr",
            "/usr/lib64/firefox/firefox",
            "/opt/firefox/firefox",
            "/usr/bin/firefox",
            "/snap/firefox/1/usr/lib/firefox/firefox",
        ),
    ),
    StoreName.CHROMIUM: (
        frozenset({"brave", "chrome", "chromium", "electron", "microsoft-edge", "msedge", "opera", "vivaldi-bin"}),
        (
            "/usr/lib/chromium/chromium",
            "/usr/bin/chromium",
            "/opt/google/chrome/chrome",
            "/opt/microsoft/msedge/msedge",
            "/opt/brave.com/brave/brave",
            "/snap/chromium/1/usr/lib/chromium-browser/chrome",
        ),
    ),
    StoreName.JAVA: (
        frozenset({"java", "javaw"}),
        ("/usr/lib/jvm/java-21-openjdk-amd64/bin/java", "/usr/bin/java", "/opt/jdk/bin/java"),
    ),
}


class Needs(NamedTuple):
    """Names of stores with the applications that read them, and the applications of which that cannot be told."""

    stores: dict[StoreName, tuple[str, ...]]
    unknown: tuple[str, ...]


def needs_of(applications: Iterable[Application]) -> Needs:
    """What these applications of a policy need."""
    stores: dict[StoreName, tuple[str, ...]] = {}
    unknown = []
    for application in applications:
        names = {name for glob in application.path for name in _readers_of_path(glob)}
        names |= {name for glob in application.process_name for name in _readers_of_name(glob)}
        if not names:
            unknown.append(application.name)
        for name in sorted(names):
            stores[name] = (*stores.get(name, ()), application.name)
    return Needs(stores, tuple(unknown))


def _readers_of_path(glob: str) -> set[StoreName]:
    *folders, program = glob.replace("\\", "/").removesuffix(".exe").split("/")
    for name, (programs, _) in READERS.items():
        if program in programs or (set(program) & {"*", "?"} and programs & set(folders)):
            return {name}
    return {StoreName.SYSTEM} | {
        name for name, (_, places) in READERS.items() if any(path_matches(glob, place) for place in places)
    }


def _readers_of_name(glob: str) -> set[StoreName]:
    found = {name for name, (programs, _) in READERS.items() if any(path_matches(glob, one) for one in programs)}
    return found if found and not set(glob) & {"*", "?"} else found | {StoreName.SYSTEM}
