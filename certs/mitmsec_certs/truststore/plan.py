"""What is done to a store of trusted roots, as data: nothing here touches one.

    Store + Root ──► Plan ── looks ────► what the store trusts, as it is read back
                          ├─ watched ──► what is kept before, and put back after, byte for byte
                          ├─ adding ───► steps that put the root in
                          └─ removing ─► steps that take it out, and nothing else

Each kind of store makes its plans in a module of its own; `keeper` carries them out, and knows no kind.
"""

from __future__ import annotations

from enum import StrEnum

from mitmsec.core.model import Value


class StoreName(StrEnum):
    """What an operator asks for; there may be several stores of one name (a Firefox has one for each profile)."""

    CHROMIUM = "chromium"
    FIREFOX = "firefox"
    JAVA = "java"
    SYSTEM = "system"


class Layout(StrEnum):
    """How a store is kept, and with which tools it is changed."""

    DEBIAN = "debian"
    JAVA = "java"
    NSS = "nss"
    RHEL = "rhel"


class Store(Value, frozen=True):
    """One store of this machine."""

    name: StoreName
    layout: Layout
    place: str  # the folder or file that it is known by, absolute
    uid: int = 0  # whose it is; everything is done with that user's rights
    user: str = "root"
    prefix: str = ""  # of the tree that it lies in; empty: the machine's own
    keytool: str = ""  # that reads and writes Java's part of it; empty: it has none, or nobody can read it

    is_in_a_home: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.place}{f', of {self.user}' if self.is_in_a_home else ''})"


class Root(Value, frozen=True):
    """The certificate to be trusted."""

    pem: str
    sha256: str  # of its DER, hex
    subject: str
    not_after: str  # RFC 3339, UTC

    @property
    def label(self) -> str:
        """What it is called in stores that name what they hold; no two roots have the same."""
        return f"mitmsec-{self.sha256[:16]}"


# --- steps ------------------------------------------------------------------------------------------------------------
class Put(Value, frozen=True, tag=True):
    """Write a file, all of it or nothing; the folder is made if there is none."""

    path: str
    content: str
    mode: int = 0o644


class Drop(Value, frozen=True, tag=True):
    """Remove a file or a link, if it is there."""

    path: str


class Run(Value, frozen=True, tag=True):
    """Run a tool. `tolerated`: it may find nothing to do, and call that a failure."""

    argv: tuple[str, ...]
    stdin: str = ""
    tolerated: bool = False


type Step = Put | Drop | Run


# --- looks ------------------------------------------------------------------------------------------------------------
class PemFile(Value, frozen=True, tag=True):
    """Every certificate of a file; none where there is no such file."""

    path: str


class PemOutput(Value, frozen=True, tag=True):
    """Every certificate that a tool prints. `tolerated`: it may fail, where there is none."""

    argv: tuple[str, ...]
    tolerated: bool = False
    part: str = ""  # of the store, where it has several that must agree


class NssTable(Value, frozen=True, tag=True):
    """Nicknames and trust flags, as `certutil -L` prints them."""

    argv: tuple[str, ...]


type Look = PemFile | PemOutput | NssTable


class Plan(Value, frozen=True):
    """All that is done to one store for one root."""

    looks: tuple[Look, ...]
    own: frozenset[str]  # entries that are seen if and only if the root is trusted as it should be
    watched: tuple[str, ...]  # files and folders; what the steps change lies in them
    adding: tuple[Step, ...]
    removing: tuple[Step, ...]
    made: tuple[str, ...] = ()  # of what lies there: files and folders that the store's own tool writes
    live: tuple[str, ...] = ()  # of `watched`: not to be replaced while a process has them open
    nickname: str = ""  # of the root, where the store gives it one, whatever its flags are

    def others(self, entries: frozenset[str]) -> frozenset[str]:
        """Those of `entries` that are not the root's."""
        mine = nickname_entry(self.nickname, "")
        return frozenset(entry for entry in entries - self.own if not (self.nickname and entry.startswith(mine)))


def certificate_entry(sha256: str, part: str = "") -> str:
    """How a look names a certificate."""
    return f"{part} certificate {sha256}".lstrip()


def nickname_entry(nickname: str, flags: str) -> str:
    """How a look names a row of NSS's table."""
    return f"nickname {nickname} {flags}"


def nss_rows(output: str) -> frozenset[str]:
    """The rows of what `certutil -L` prints: below the heading and its units, a nickname and its trust flags each."""
    rows = set()
    for line in output.splitlines():
        nickname, _, flags = line.rstrip().rpartition(" ")
        if flags.count(",") == 2 and flags != _UNITS:
            rows.add(nickname_entry(nickname.strip(), flags))
    return frozenset(rows)


_UNITS = "SSL,S/MIME,JAR/XPI"
