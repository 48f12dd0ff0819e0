"""The CA as the signer opens it: made on first use, replaced when nobody can trust it any longer, and checked.

    no CA                    ─► an automatic one; its root's key ends with the process that made it
    an automatic one, ended  ─► retired, and the next one made
    another, ended           ─► refused: an operator made it, and an operator has to renew it
    one that takes over      ─► what a crash left of that is done to its end (mitmsec_certs.succession)

What a crash left half made was never announced to anybody and is made anew.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mitmsec.core.crl_place import crl_path
from mitmsec_certs import ca_folder, ceremony, succession
from mitmsec_certs.authority import Authority, spki_of, validity_of
from mitmsec_certs.ca_folder import ISSUING, KEY, PEM, ROOT, About, CaKind, Certificates, KeystoreRefused
from mitmsec_certs.ceremony import RootKeySource
from mitmsec_certs.issuing import authority_in, write_key
from mitmsec_certs.profile import DAY_S

ENDS_SOON_S = 14 * DAY_S

__all__ = ["Keystore", "KeystoreRefused", "open_keystore"]


class Keystore:
    """An open CA: what the signer needs and what others may know."""

    def __init__(
        self,
        authority: Authority,
        public: Certificates,
        *,
        trusted: list[x509.Certificate],
        own: list[x509.Certificate],
        created: bool,
    ) -> None:
        self.authority = authority
        self.kind = public.about.kind
        self.root_pem = public.root.public_bytes(PEM).decode()
        self.roots_pem = _pem(trusted)  # those that commands should trust
        self.own_pem = _pem(own)  # CAs that nobody signs with but we
        self.issuing_pem = public.issuing.public_bytes(PEM).decode()
        self.root_subject = public.root.subject.rfc4514_string()
        self.root_sha256 = public.root.fingerprint(hashes.SHA256()).hex()
        self.root_not_after_s = validity_of(public.root).not_after_s
        self.created = created  # by this call
        self._root_lists = _root_lists(public)

    def ends_soon(self, now_s: int) -> bool:
        """Leaves get shorter than usual soon, and within two weeks there are none."""
        return self.authority.validity.not_after_s - now_s < ENDS_SOON_S

    def crls(self, now_s: int) -> tuple[tuple[str, bytes], ...]:
        """The revocation lists that our certificates name, DER, by their paths."""
        mine = self.authority.crl(now_s)
        return (*self._root_lists, *(() if mine is None else (mine,)))

    @property
    def renewal(self) -> str:
        """What is to be done about its end."""
        return (
            "the first start after that makes a new CA"
            if self.kind is CaKind.AUTOMATIC
            else "`mitmsec ca rotate` renews it"
        )


def open_keystore(
    folder: Path,
    host: str,
    now_s: int,
    *,
    secret: bytes | None = None,
    new_root_key: RootKeySource = ceremony.p384,
) -> Keystore:
    """Read the CA in `folder`, or make it. `secret` opens a sealed key.

    Raises KeystoreRefused for files that others can read or that do not belong together, OSError for a broken disk.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca_folder.require_private_folder(folder)
    with ca_folder.locked(folder):
        succession.finish(folder)
        created = False
        if ca_folder.is_complete(folder) and _is_replaced(folder, now_s):
            ca_folder.retire(folder, now_s)
        if not ca_folder.is_complete(folder):
            _create(folder, host, now_s, secret, new_root_key)
            created = True
        return _load(folder, now_s, secret, created)


def _create(folder: Path, host: str, now_s: int, secret: bytes | None, new_root_key: RootKeySource) -> None:
    ca_folder.clear(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    root, issuing = ceremony.automatic(spki_of(key.public_key()), host, now_s, new_root_key)
    write_key(folder / KEY, key, secret)
    ca_folder.write_public(folder, [issuing], About(made_s=now_s), root)


def _is_replaced(folder: Path, now_s: int) -> bool:
    """An automatic CA is, by itself, once it has ended: nobody can trust it any longer."""
    ended = now_s > validity_of(ca_folder.certificate(folder / ROOT)).not_after_s
    return ended and ca_folder.about_of(folder).kind is CaKind.AUTOMATIC


def _load(folder: Path, now_s: int, secret: bytes | None, created: bool) -> Keystore:
    public = ca_folder.certificates(folder)
    _require_current(folder, public, now_s)
    authority = authority_in(folder, public, secret)
    trusted, own = succession.trusted(folder, now_s), succession.own(folder)
    return Keystore(authority, public, trusted=trusted, own=own, created=created)


def _root_lists(public: Certificates) -> tuple[tuple[str, bytes], ...]:
    if public.root_list is None:
        return ()
    identifier = public.root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    return ((crl_path(identifier), public.root_list.public_bytes(serialization.Encoding.DER)),)


def _pem(certificates: list[x509.Certificate]) -> str:
    return "".join(certificate.public_bytes(PEM).decode() for certificate in certificates)


def _require_current(folder: Path, public: Certificates, now_s: int) -> None:
    validity = validity_of(public.issuing)
    if now_s < validity.not_before_s:
        began = public.issuing.not_valid_before_utc.isoformat()
        raise KeystoreRefused(f"{folder / ISSUING} is valid only from {began}. Set this machine's clock right")
    if now_s > validity.not_after_s and public.about.kind is not CaKind.AUTOMATIC:
        ended = public.issuing.not_valid_after_utc.isoformat()
        raise KeystoreRefused(f"{folder / ISSUING} ended at {ended}. `mitmsec ca rotate` makes the next one")
