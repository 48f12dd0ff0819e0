"""NSS databases: each Firefox profile has one, Chromium and what is built on it one for each user.

The flags `C,,` say: a CA for TLS servers, and for nothing else. A database is three files; `key4.db` is one of them
because NSS signs trust flags with a key of it.
"""

from __future__ import annotations

from mitmsec_certs.truststore.plan import (
    Layout,
    NssTable,
    PemOutput,
    Plan,
    Root,
    Run,
    Store,
    StoreName,
    certificate_entry,
    nickname_entry,
)

FLAGS = "C,,"
TOOL = "certutil"
DATABASE = "cert9.db"
_FILES = (DATABASE, "key4.db", "pkcs11.txt")
_JOURNALS = (
    "cert9.db-journal",
    "key4.db-journal",
)  # of SQLite: part of the database that it lies beside

# Below a home. A star is one folder.
FIREFOX = (
    ".mozilla/firefox/*",
    ".config/mozilla/firefox/*",  # Firefox 147 and later, for new users
    "snap/firefox/common/.mozilla/firefox/*",
    ".var/app/org.mozilla.firefox/.mozilla/firefox/*",  # flatpak
    ".var/app/org.mozilla.firefox/config/mozilla/firefox/*",
)
CHROMIUM = (
    ".pki/nssdb",
    ".local/share/pki/nssdb",  # newer ones, for new users
    "snap/*/current/.pki/nssdb",
    ".var/app/*/.pki/nssdb",  # flatpak
    ".var/app/*/data/pki/nssdb",
)


def nss(name: StoreName, place: str, *, uid: int, user: str) -> Store:
    """The database in the folder `place`."""
    return Store(name=name, layout=Layout.NSS, place=place, uid=uid, user=user, is_in_a_home=True)


def nss_plan(store: Store, root: Root) -> Plan:
    """Of a database in SQL form."""
    files = tuple(f"{store.place}/{name}" for name in _FILES)
    there = ("-d", f"sql:{store.place}")
    watched = (*files, *(f"{store.place}/{name}" for name in _JOURNALS))
    return Plan(
        looks=(
            NssTable(argv=(TOOL, "-L", *there)),
            PemOutput(argv=(TOOL, "-L", *there, "-n", root.label, "-a"), tolerated=True),
        ),
        own=frozenset({certificate_entry(root.sha256), nickname_entry(root.label, FLAGS)}),
        watched=watched,
        made=watched,
        adding=(Run(argv=(TOOL, "-A", *there, "-n", root.label, "-t", FLAGS, "-a"), stdin=root.pem),),
        removing=(Run(argv=(TOOL, "-D", *there, "-n", root.label), tolerated=True),),
        live=files,
        nickname=root.label,
    )
