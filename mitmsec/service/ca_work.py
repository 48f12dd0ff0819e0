"""What commands do to the CA: keys as the signer's user, the root's file as root, and every step on record.

prepare (signer's user) ─► public key ─► root's ceremony (a process of its own) ─► certificates, the root's file
complete, take over (signer's user) ─► the supervisor, started if none: signer reads anew, journal goes on record
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from mitmsec.audit.event import CaSeen
from mitmsec.channel import ChannelBroken
from mitmsec.core.messages import Role
from mitmsec.service import ca_journal, control, rehearsal, sealing, token_ground
from mitmsec.service.accounts import account_of
from mitmsec.service.joining import join
from mitmsec.service.refusals import CannotRun
from mitmsec.service.state import State
from mitmsec.service.token_options import TokenOrder
from mitmsec_certs import ca_folder, ceremony, kept_token, succession
from mitmsec_certs.authority import CaKey, spki_of
from mitmsec_certs.ca_facts import CertificateFacts, facts, facts_of
from mitmsec_certs.ca_folder import About, CaKind, KeystoreRefused
from mitmsec_certs.ceremony import CeremonyFailed
from mitmsec_certs.constraints import Constraints
from mitmsec_certs.sub_ca import SubCa
from mitmsec_certs.token_reference import TokenReference

ADOPT_DEADLINE_S = 60.0
LOCK = "ca.lock"


class RootFileExists(Exception):
    """What would be overwritten; the text is its path."""


def as_signer(state: State, work: Callable[[Path], list[bytes]]) -> list[bytes]:
    """Run `work` on the CA's folder, locked, as the signer's user. Raises CeremonyFailed with its refusal, OSError."""
    account, here = account_of(Role.SIGNER), Path()
    if token_ground.modules_of(state) != token_ground.NOTHING:
        importlib.import_module("mitmsec_certs.token_key")  # now: the signer's user may be kept from where it lies

    def alone() -> list[bytes]:
        with ca_folder.locked(here):
            return work(here)

    return ceremony.in_child(alone, user=(account.uid, account.gid), folder=state.ca)


@contextlib.contextmanager
def alone(state: State) -> Iterator[None]:
    """No other command changes the CA meanwhile: between two steps of one, another would take its key from it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(state.run / LOCK, flags, 0o600), "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prepared(state: State, token: TokenOrder | None = None, *, is_own: bool = False) -> bytes:
    """The public half (SPKI, DER) of a new key that waits for its certificate: in a `token` that is named, in the one
    that the CA has its key in already, or in a file. `is_own`: a root of ours will sign it.

    Raises CeremonyFailed, OSError.
    """
    secret, named = sealing.secret_of(state), _allowed(state, token)
    return as_signer(state, lambda folder: [succession.prepare(folder, secret=secret, token=named, is_own=is_own)])[0]


def _allowed(state: State, token: TokenOrder | None) -> TokenReference | None:
    """The signer may load its module from now on. Raises OSError."""
    if token is None:
        return None
    token_ground.allow(state, token.module)
    return token.reference


def key_in(state: State, token: TokenOrder) -> bytes:
    """The public half (SPKI, DER) of a key that is in a token. Raises CeremonyFailed, OSError."""
    named = _allowed(state, token)
    assert named is not None

    def work(folder: Path) -> list[bytes]:
        return [spki_of(kept_token.tried(folder / ca_folder.KEY, named).public_key())]

    return as_signer(state, work)[0]


def make_own(
    state: State,
    limit: Constraints,
    passphrase: str,
    root_file: Path,
    user: str,
    now_s: int,
    *,
    waits: bool = False,
    token: TokenOrder | None = None,
) -> CaSeen:
    """A CA of our own takes the place of what was there, or `waits` to. The event that will stand in the log.

    Raises CeremonyFailed, RootFileExists, OSError.
    """
    if os.path.lexists(root_file):
        raise RootFileExists(str(root_file))
    _require_folder_of(root_file)
    public_key = prepared(state, token, is_own=True)
    root, issuing, sealed = ceremony.lasting(public_key, socket.gethostname(), now_s, limit, passphrase)
    write_root_file(root_file, sealed)
    about = About(kind=CaKind.OWN, made_s=now_s, root_file=str(root_file))
    seen = operation("root_rotation_begun" if waits else "initialised", facts_of(root), facts_of(issuing), user)
    try:
        with ca_journal.noted(state, seen):
            put_in_place(state, [issuing], about, root, now_s, waits=waits)
    except (CeremonyFailed, OSError):
        if not _has_root(state, seen.sha256, now_s):
            root_file.unlink()  # of a root that nobody will ever trust
        raise
    return seen


def _require_folder_of(file: Path) -> None:
    """Asked before anything that waits is forgotten. Raises OSError."""
    ca_folder.sync(file.parent)


def _has_root(state: State, sha256: str, now_s: int) -> bool:
    """Whether the CA, or the one that waits, has that root; true where it cannot be told."""
    try:
        found = facts(state.ca, now_s)
    except (KeystoreRefused, OSError):
        return True
    return found is not None and sha256 in {found.root.sha256, found.next.root.sha256 if found.next else ""}


def ask(state: State, limit: Constraints, file: Path, user: str, now_s: int, token: TokenOrder | None = None) -> CaSeen:
    """A request (PKCS #10, PEM) for an issuing CA is in `file`, a new one; its key waits here.

    Raises CeremonyFailed, OSError.
    """
    _require_folder_of(file)
    name = ceremony.place(socket.gethostname(), now_s).common_name("issuing")
    secret, named = sealing.secret_of(state), _allowed(state, token)
    pem = as_signer(state, lambda folder: [succession.request(folder, name, limit, secret=secret, token=named)])[0]
    seen = CaSeen(
        operation="requested", subject=f"CN={name}", sha256=hashlib.sha256(pem).hexdigest(), not_after="", user=user
    )
    with ca_journal.noted(state, seen), file.open("xb") as out:
        out.write(pem)
    return seen


def asked_key(state: State) -> bytes:
    """The public half (SPKI, DER) of the key that a request was made for. Raises CeremonyFailed, OSError."""
    secret = sealing.secret_of(state)
    return as_signer(state, lambda folder: [succession.prepared(folder, secret=secret)])[0]


def bring(
    state: State,
    sub: SubCa,
    key: CaKey | TokenOrder | None,
    user: str,
    now_s: int,
    *,
    waits: bool = False,
    accepted: str = "",
) -> CaSeen:
    """A CA below somebody else's root takes the place of what was there, or `waits` to. Without `key`, the one that was
    asked for. Raises CeremonyFailed, OSError.
    """
    if isinstance(key, TokenOrder):
        prepared(state, key)
    elif key is not None:
        secret = sealing.secret_of(state)
        as_signer(state, lambda folder: [succession.prepare(folder, key, secret=secret)])
    seen = operation("import_waits" if waits else "imported", facts_of(sub.root), facts_of(sub.chain[0]), user)
    seen = msgspec.structs.replace(seen, detail=f"{seen.detail}; accepted: {accepted}" if accepted else seen.detail)
    with ca_journal.noted(state, seen):
        put_in_place(state, list(sub.chain), About(kind=CaKind.IMPORTED, made_s=now_s), sub.root, now_s, waits=waits)
    return seen


def begin_automatic(state: State, user: str, now_s: int) -> CaSeen:
    """Another automatic CA waits to take over. Raises CeremonyFailed, OSError."""
    root, issuing = ceremony.automatic(prepared(state), socket.gethostname(), now_s)
    seen = operation("root_rotation_begun", facts_of(root), facts_of(issuing), user)
    with ca_journal.noted(state, seen):
        put_in_place(state, [issuing], About(made_s=now_s), root, now_s, waits=True)
    return seen


def renew_issuing(state: State, sealed: bytes, passphrase: str, user: str, now_s: int) -> CaSeen:
    """Another issuing CA under the root that serves, whose file was brought. Raises CeremonyFailed, OSError."""
    current, brought = facts(state.ca, now_s), facts_of(ceremony.rehearsed(sealed, passphrase, now_s))
    if current is None or brought.sha256 != current.root.sha256:
        raise CeremonyFailed(f"the file holds another root, {brought.subject}; --new-root changes the root")
    root, issuing = ceremony.signed(prepared(state), sealed, passphrase, socket.gethostname(), now_s)
    seen = operation("issuing_rotated", facts_of(root), facts_of(issuing), user)
    about = About(kind=CaKind.OWN, made_s=now_s, root_file=current.root_file)
    with ca_journal.noted(state, seen):
        put_in_place(state, [issuing], about, root, now_s)
    return seen


def take_over(state: State, user: str, now_s: int) -> CaSeen:
    """The CA that waits serves. Raises CeremonyFailed, OSError."""
    current = facts(state.ca, now_s)
    if current is None or current.next is None:
        raise CeremonyFailed("no CA waits to take over")
    seen = operation("taken_over", current.next.root, current.next.issuing, user)

    def work(folder: Path) -> list[bytes]:
        succession.take_over(folder, now_s)
        return []

    with ca_journal.noted(state, seen):
        as_signer(state, work)
    return seen


def put_in_place(
    state: State, chain: list[bytes], about: About, root: bytes, now_s: int, *, waits: bool = False
) -> None:
    """The prepared key and these certificates (PEM) are the CA; or, if it `waits`, the next one.

    Raises CeremonyFailed, OSError.
    """

    secret = sealing.secret_of(state)

    def work(folder: Path) -> list[bytes]:
        succession.complete(folder, chain, about, root, secret=secret)
        if not waits and not ca_folder.about_of(folder / ca_folder.NEXT).token:
            succession.take_over(folder, now_s)
        return []

    as_signer(state, work)
    following = state.ca / ca_folder.NEXT
    if ca_folder.is_complete(following) and ca_folder.about_of(following).token:
        _require_reach(state)
        if not waits:
            as_signer(state, _silent(lambda folder: succession.take_over(folder, now_s)))


def _require_reach(state: State) -> None:
    """What waits does so no more where the signer could not sign with it. Raises CeremonyFailed, OSError."""
    why = rehearsal.flaw_of(state, state.ca / ca_folder.NEXT)
    if why is not None:
        as_signer(state, _silent(lambda folder: ca_folder.clear(folder / ca_folder.NEXT)))
        raise CeremonyFailed(f"{why}\n  the signer sees /usr, what --pkcs11-path names, and no network or daemon")


def _silent(work: Callable[[Path], None]) -> Callable[[Path], list[bytes]]:
    """`work`, which has nothing to answer."""

    def done(folder: Path) -> list[bytes]:
        work(folder)
        return []

    return done


def seal(state: State, user: str, now_s: int) -> CaSeen:
    """From now on the CA's keys lie sealed; also where somebody was killed while sealing them.

    Raises SealFailed, CeremonyFailed, OSError.
    """
    old = sealing.secret_of(state)
    credential, secret = sealing.new_seal() if old is None else (b"", old)

    def work(folder: Path) -> list[bytes]:
        if old is None:  # first: a key in clear opens with it, too
            ca_folder.write(folder / ca_folder.SEAL, credential, 0o600)
        succession.reseal(folder, old, secret)
        return []

    return _resealed(state, "sealed", work, user, now_s)


def unseal(state: State, user: str, now_s: int) -> CaSeen:
    """The CA's keys lie in clear again, the signer's alone. Raises SealFailed, CeremonyFailed, OSError."""
    secret = sealing.secret_of(state)

    def work(folder: Path) -> list[bytes]:
        succession.reseal(folder, secret, None)
        (folder / ca_folder.SEAL).unlink()
        return []

    return _resealed(state, "unsealed", work, user, now_s)


def change_pin(state: State, pin: str, user: str, now_s: int) -> CaSeen:
    """The PIN of the token that has the issuing key is another from now on, and opens it. Raises CeremonyFailed,
    SealFailed, OSError.
    """
    secret = sealing.secret_of(state)

    def work(folder: Path) -> list[bytes]:
        succession.change_pin(folder, pin, secret)
        return []

    return _resealed(state, "pin_changed", work, user, now_s)


@contextlib.contextmanager
def removing(state: State, user: str, now_s: int) -> Iterator[None]:
    """The body removes the CA; that goes on record with the next start. Raises OSError."""
    current = None
    with contextlib.suppress(KeystoreRefused):  # a damaged one goes, too
        current = facts(state.ca, now_s)
    if current is None:
        yield
        return
    with ca_journal.noted(state, operation("removed", current.root, current.issuing, user)):
        yield


def _resealed(state: State, name: str, work: Callable[[Path], list[bytes]], user: str, now_s: int) -> CaSeen:
    current = facts(state.ca, now_s)
    if current is None:
        raise CeremonyFailed("there is no CA yet")
    seen = operation(name, current.root, current.issuing, user)
    with ca_journal.noted(state, seen):
        as_signer(state, work)
    return seen


def operation(name: str, root: CertificateFacts, issuing: CertificateFacts, user: str) -> CaSeen:
    """The event of what was done."""
    limit = ", ".join(issuing.permitted) or "every name"
    but = f", but not {', '.join(issuing.excluded)}" if issuing.excluded else ""
    detail = f"issuing CA {issuing.sha256} until {issuing.not_after}, for {limit}{but}"
    return CaSeen(
        operation=name, subject=root.subject, sha256=root.sha256, not_after=root.not_after, detail=detail, user=user
    )


def write_root_file(path: Path, sealed: bytes) -> None:
    """A new file, root's alone, on disk when this returns. Raises RootFileExists, OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError:
        raise RootFileExists(str(path)) from None
    try:
        with open(descriptor, "wb") as file:
            file.write(sealed)
            file.flush()
            os.fsync(descriptor)
        ca_folder.sync(path.parent)
    except OSError:
        path.unlink()  # half of it is no use, and would be in the way
        raise


def announce(state: State) -> None:
    """The signer signs with the CA as it is now, and what was done is on record. Raises CannotRun."""
    remedy = f"what was done is kept in {state.run / ca_journal.NAME}, and goes on record with the next start"
    channel = join(state, worker=False)
    try:
        received = channel.exchange(control.CaChanged(), timeout_s=ADOPT_DEADLINE_S)
    except (OSError, TimeoutError, ChannelBroken) as error:
        raise CannotRun(f"the supervisor did not take the CA up: {error}", remedy, 125) from None
    finally:
        channel.close()
    answer = received[0] if received is not None else None
    if not isinstance(answer, control.CaAdopted):
        why = answer.error if isinstance(answer, control.Refused) else "no answer"
        raise CannotRun(f"the supervisor did not take the CA up: {why}", remedy, 125)
