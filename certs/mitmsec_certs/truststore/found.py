"""Which stores there are on this machine: the system's, each Java's, each Firefox profile's, each user's Chromium's.

A home is looked into with the rights of whoever owns it: a link in it leads nowhere that its owner may not read. What
belongs to somebody else than the home does is left alone. A Java outside of homes that one user could exchange, as
IDEs in /opt that update themselves, is that user's: its files are changed, and its tool is run, with no other rights.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mitmsec_certs.truststore import nss_stores, system_stores
from mitmsec_certs.truststore.host import PATH, rights_of
from mitmsec_certs.truststore.java_stores import java
from mitmsec_certs.truststore.plan import Store, StoreName
from mitmsec_certs.truststore.system_stores import DEBIAN_JAVA_HOOK
from mitmsec_certs.truststore.whose import changers

CACERTS = "lib/security/cacerts"
JAVAS = ("/usr/lib/jvm/*", "/usr/java/*", "/opt/*", "/opt/*/jbr")
JAVAS_OF_USERS = (".sdkman/candidates/java/*", ".jdks/*")
_MADE_ANEW = "/etc/pki/"  # by update-ca-trust, each time, from the system's store


class Home(NamedTuple):
    """A user's home."""

    uid: int
    user: str
    path: str


def stores(homes: Iterable[Home] | None = None, prefix: str = "") -> list[Store]:
    """All of them; `prefix` is that of another tree than the machine's own."""
    homes = list(_homes() if homes is None else homes)
    return [*_system(prefix), *_java(prefix), *(store for home in homes for store in _of(home))]


def _homes() -> Iterator[Home]:
    """Of everybody who has one of their own."""
    seen = set()
    for user in pwd.getpwall():
        with contextlib.suppress(OSError):
            if os.stat(user.pw_dir).st_uid == user.pw_uid and user.pw_dir not in seen and user.pw_dir != "/":
                seen.add(user.pw_dir)
                yield Home(user.pw_uid, user.pw_name, user.pw_dir)


def _system(prefix: str) -> Iterator[Store]:
    if os.path.isdir(prefix + system_stores.DEBIAN_CERTS) and shutil.which(system_stores.DEBIAN_TOOL, path=PATH):
        has_java = all(os.path.exists(prefix + path) for path in (system_stores.DEBIAN_JAVA, DEBIAN_JAVA_HOOK))
        yield system_stores.debian(prefix, keytool=(_tool("keytool") if has_java else ""))
    elif os.path.isdir(f"{prefix}{system_stores.RHEL_TRUST}/source/anchors"):
        yield system_stores.rhel(prefix)


def _java(prefix: str) -> Iterator[Store]:
    """One for each file; where several installations share it, the first one's tool changes it."""
    seen = set()
    for pattern in JAVAS:
        for home in sorted(glob.glob(prefix + pattern)):
            place = os.path.realpath(f"{home}/{CACERTS}")
            if os.path.isfile(place) and place not in seen and not place.startswith(_MADE_ANEW):
                seen.add(place)
                uid = _owner(place)
                if uid is not None:
                    yield java(place, _keytool_for(home, uid), uid=uid, user=_name(uid) if uid else "")


def _owner(place: str) -> int | None:
    """With whose rights it is changed: root's, where nobody else can exchange it. None: with nobody's."""
    with contextlib.suppress(OSError):
        owners = changers(place)
        others = None if owners is None else owners - {0}
        if others is not None and len(others) <= 1:
            return next(iter(others), 0)
    return None


def _name(uid: int) -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def _keytool_for(java_home: str, uid: int) -> str:
    """Its own, if nobody but root and `uid` can have exchanged that; else the machine's."""
    with contextlib.suppress(OSError):
        owners = [changers(f"{java_home}/{part}") for part in ("bin/keytool", "lib")]
        if all(one is not None and one <= {0, uid} for one in owners):
            return _keytool(java_home)
    return _tool("keytool")


def _of(home: Home) -> Iterator[Store]:
    with rights_of(home.uid):
        for name, patterns in ((StoreName.FIREFOX, nss_stores.FIREFOX), (StoreName.CHROMIUM, nss_stores.CHROMIUM)):
            for place in _below(home, patterns):
                if _is_own(f"{place}/{nss_stores.DATABASE}", home):
                    yield nss_stores.nss(name, place, uid=home.uid, user=home.user)
        for place in _below(home, JAVAS_OF_USERS):
            if _is_own(f"{place}/{CACERTS}", home):
                yield java(f"{place}/{CACERTS}", _keytool(place), uid=home.uid, user=home.user)


def _below(home: Home, patterns: Iterable[str]) -> list[str]:
    """Folders, each once: `current` of a snap is a link to one of its versions."""
    found = [place for pattern in patterns for place in sorted(glob.glob(f"{glob.escape(home.path)}/{pattern}"))]
    return list(dict.fromkeys(map(os.path.realpath, found)))


def _is_own(path: str, home: Home) -> bool:
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        return status.st_uid == home.uid and stat.S_ISREG(status.st_mode)
    return False


def _keytool(java_home: str) -> str:
    own = f"{java_home}/bin/keytool"
    return own if os.access(own, os.X_OK) else _tool("keytool")


def _tool(name: str) -> str:
    return shutil.which(name, path=PATH) or ""
