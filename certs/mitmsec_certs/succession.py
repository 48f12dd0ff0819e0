"""How one CA follows another: the next one is made beside it, trusted beside it, and then takes its place.

    prepare ──► next/ issuing.key                      the key of the next CA, and nothing else yet
    complete ─► next/ issuing.pem about.json root.pem  from here on commands are told to trust its root as well
    take_over ► root.pem to retired/, then next/ comes up, root.pem last; `finish` does the rest after a crash

A root that was replaced stays trusted for a day by the commands that are started then: workers keep a leaf for an hour.
Each function runs as the signer's user, with the folder locked.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mitmsec_certs import ca_folder, issuing, kept_token
from mitmsec_certs.authority import CaKey, spki_of, validity_of
from mitmsec_certs.ca_folder import (
    ABOUT,
    FOREIGN_ENDING,
    ISSUING,
    KEY,
    NEXT,
    RETIRED,
    ROOT,
    About,
    CaKind,
    KeystoreRefused,
)
from mitmsec_certs.constraints import Constraints
from mitmsec_certs.issuing import authority_in, private_key, write_key
from mitmsec_certs.profile import DAY_S
from mitmsec_certs.signing_request import signing_request
from mitmsec_certs.token_reference import TokenReference

RETIRED_TRUSTED_S = DAY_S
ISSUING_ENDING = ".issuing"  # of an issuing CA below somebody else's root, in `retired`


def prepare(
    folder: Path,
    key: CaKey | None = None,
    *,
    secret: bytes | None = None,
    token: TokenReference | None = None,
    is_own: bool = False,
) -> bytes:
    """A new key for the next CA, or `key`; what was prepared before is gone. Its public half (SPKI, DER).

    With `token` the key that this names, made where it is not there yet; without it, where the CA that serves has its
    key in a token, a new one beside that. `is_own`: a root of ours will sign it, and does so for P-256 alone.

    Raises KeystoreRefused; then what waited before still does.
    """
    following = folder / NEXT
    following.mkdir(mode=0o755, exist_ok=True)
    if key is None and token is None and (folder / KEY).exists():
        serving = kept_token.reference(folder / KEY, secret)
        token = None if serving is None else kept_token.following(serving)
    if token is not None:
        key = kept_token.made(following / KEY, token)
        if is_own and not _is_p256(key):
            raise KeystoreRefused(
                "the key in the token is not P-256, as an issuing CA of ours has it; name another object"
            )
    ca_folder.clear(following)
    if token is not None:
        kept_token.write(following / KEY, token, secret)
    key = key or ec.generate_private_key(ec.SECP256R1())
    if token is None:
        write_key(following / KEY, key, secret)
    return spki_of(key.public_key())


def _is_p256(key: CaKey) -> bool:
    return isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)


def request(
    folder: Path,
    common_name: str,
    constraints: Constraints,
    *,
    secret: bytes | None = None,
    token: TokenReference | None = None,
) -> bytes:
    """A key for the next CA, as `prepare` has it, and the request (PKCS #10, PEM) by which another CA certifies it."""
    prepare(folder, secret=secret, token=token)
    return signing_request(private_key(folder / NEXT / KEY, secret), common_name, constraints)


def prepared(folder: Path, *, secret: bytes | None = None) -> bytes:
    """The public half (SPKI, DER) of the key that waits for its certificates. Raises KeystoreRefused."""
    if ca_folder.is_complete(folder / NEXT) or not (folder / NEXT / KEY).exists():
        raise KeystoreRefused("no request waits for an answer")
    return spki_of(private_key(folder / NEXT / KEY, secret).public_key())


def complete(folder: Path, chain: list[bytes], about: About, root: bytes, *, secret: bytes | None = None) -> None:
    """The certificates for the key that was prepared, PEM: the issuing CA's, those above it, the root's.

    Raises KeystoreRefused where they are not for that key, or not for each other; then nothing waits.
    """
    following = folder / NEXT
    about = msgspec.structs.replace(about, token=kept_token.uri_in(following / KEY))
    ca_folder.write_public(following, chain, about, root)
    try:
        authority_in(following, ca_folder.certificates(following), secret)
    except KeystoreRefused:
        ca_folder.clear(following)
        raise


def reseal(folder: Path, old: bytes | None, new: bytes | None) -> None:
    """The keys here, the one that waits too, are sealed under `new`, or in clear for None. Raises KeystoreRefused."""
    for path in (folder / KEY, folder / NEXT / KEY):
        if path.exists():
            issuing.reseal(path, old, new)


def change_pin(folder: Path, pin: str, secret: bytes | None) -> None:
    """The token of the CA, and of the one that waits, if it is the same, has another PIN; it opens the key.

    Raises KeystoreRefused where the key is in no token, or where that refuses the PIN too.
    """
    serving = kept_token.reference(folder / KEY, secret)
    if serving is None:
        raise KeystoreRefused("the issuing key is in no token, so it has no PIN")
    for path in (folder / KEY, folder / NEXT / KEY):
        named = kept_token.reference(path, secret) if path.exists() else None
        if named is not None and (path.parent == folder or named.pin == serving.pin):
            new = msgspec.structs.replace(named, pin=pin, pin_refused=False)
            kept_token.tried(path, new)
            kept_token.write(path, new, secret)


def take_over(folder: Path, now_s: int) -> None:
    """The next CA is the CA. Raises KeystoreRefused where there is no complete one."""
    following = folder / NEXT
    if not ca_folder.is_complete(following):
        raise KeystoreRefused(f"{following}: no CA waits here to take over")
    if ca_folder.is_complete(folder):
        _retire(folder, ca_folder.certificate(following / ROOT), now_s)
    finish(folder)


def finish(folder: Path) -> None:
    """Bring up what waits in `next` where the CA before it has been retired; else nothing happens."""
    following = folder / NEXT
    if ca_folder.is_complete(folder) or not ca_folder.is_complete(following):
        return
    for name in (KEY, ISSUING, ABOUT, ROOT):
        with contextlib.suppress(FileNotFoundError):  # it has come up already
            (following / name).rename(folder / name)
    ca_folder.sync(folder)


def trusted(folder: Path, now_s: int) -> list[x509.Certificate]:
    """The roots that a command that starts now should trust: the CA's, the next one's, and the one's just before."""
    roots = [ca_folder.certificate(folder / ROOT)]
    if ca_folder.is_complete(folder / NEXT):
        roots.append(ca_folder.certificate(folder / NEXT / ROOT))
    for path in sorted((folder / RETIRED).glob("*.pem")):
        retired_s = path.stat().st_mtime
        root = ca_folder.certificate(path)
        if retired_s <= now_s < retired_s + RETIRED_TRUSTED_S and now_s <= validity_of(root).not_after_s:
            roots.append(root)
    return list(dict.fromkeys(roots))


def own(folder: Path) -> list[x509.Certificate]:
    """The CAs that nobody signs with but we: not an enterprise's root above ours. Retired ones too: leaves of theirs
    may live for 90 days more, and have their keys.
    """
    found = []
    for each in (folder, folder / NEXT):
        if ca_folder.is_complete(each):
            public = ca_folder.certificates(each)
            found += [public.issuing] if public.about.kind is CaKind.IMPORTED else [public.root, public.issuing]
    retired = (folder / RETIRED).glob("*.pem")
    found += [ca_folder.certificate(path) for path in sorted(retired) if not path.name.endswith(FOREIGN_ENDING)]
    found += [ca_folder.certificate(path) for path in sorted((folder / RETIRED).glob(f"*{ISSUING_ENDING}"))]
    return list(dict.fromkeys(found))


def _retire(folder: Path, successor: x509.Certificate, now_s: int) -> None:
    """A root that goes on under another issuing CA has nothing to be retired for."""
    if ca_folder.about_of(folder).kind is CaKind.IMPORTED:
        _keep_issuing(folder)
    if ca_folder.certificate(folder / ROOT) == successor:
        (folder / ROOT).unlink()
        return
    ca_folder.retire(folder, now_s)


def _keep_issuing(folder: Path) -> None:
    """Its root stays trusted, so what it has signed has to be known as ours by itself."""
    issuing = ca_folder.certificates(folder).issuing
    retired = folder / RETIRED
    retired.mkdir(mode=0o755, exist_ok=True)
    kept = retired / f"{issuing.serial_number:032x}{ISSUING_ENDING}"
    ca_folder.write(kept, issuing.public_bytes(ca_folder.PEM), 0o644)
