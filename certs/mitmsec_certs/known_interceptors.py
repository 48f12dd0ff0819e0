"""Roots whose private keys are public knowledge, or that came with software that reads connections.

Who has such a root in the machine's store has been attacked, or bought a computer with it: no origin may prove itself
by it. The certificates are those that Chromium blocks as interception software and as leaked private keys
(net/data/ssl/blocklist/README.md), by their SHA-256; the names are for further certificates of the same makers.
"""

from __future__ import annotations

_CERTIFICATES = {
    "b6fe9151402bad1c06d7e66db67a26aa7356f2e6c644dbcf9f98968ff632e1b7": "Superfish",
    "0f912fd7be760be25afbc56bdc09cd9e5dcc9c6f6a55a778aefcb6aa30e31554": "eDellRoot",
    "ec30c9c3065a06bb07dc5b1c6b497f370c1ca65c0f30c08e042ba6bcecc78f2c": "DSDTestProvider",
    "2a33f5b48176523fd3c0d854f20093417175bfd498ef354cc7f38b54adabaf1a": "Mitel",
    "2d11e736f0427fd6ba4b372755d34a0edd8d83f7e9e7f6c01b388c9b7afa850d": "Mitel",
    "3ab0fcc7287454c405863e3aa204fea8eb0c50a524d2a7e15524a830cd4ab0fe": "Mitel",
    "60911c79835c3739432d08c45df64311e06985c5889dc5420ce3d142c8c7ef58": "Mitel",
    "91e5cc32910686c5cac25c18cc805696c7b33868c280caf0c72844a2a8eb91e2": "Sennheiser HeadSetup",
    "ddd8ab9178c99cbd9685ea4ae66dc28bfdc9a5a8a166f7f69ad0b5042ad6eb28": "Sennheiser HeadSetup",
}
_NAMES = {"superfish, inc.": "Superfish", "edellroot": "eDellRoot", "dsdtestprovider": "DSDTestProvider"}


def interceptor(sha256: str, common_name: str) -> str | None:
    """Whose root the certificate with this hash (hex) or this common name is; None: nobody's that is known."""
    return _CERTIFICATES.get(sha256) or _NAMES.get(common_name.strip().lower())
