"""Where clients find the revocation lists of our CA: at an address that leads nowhere but to the gate.

192.0.2.0/24 is set aside for documentation (RFC 5737), so nobody is ever reached there. A program that is shown a leaf
of ours is diverted, whatever it connects to; its connection to this place is decided and recorded like any other, and
the gate is its origin.
"""

from __future__ import annotations

from mitmsec.core.model import Endpoint

CRL_PLACE = Endpoint(address="192.0.2.80", port=80)


def crl_path(key_identifier: bytes) -> str:
    """The path of the list that the CA with this subject key identifier signs."""
    return f"/{key_identifier.hex()}.crl"


def crl_url(key_identifier: bytes) -> str:
    """What stands in certificates that it has signed."""
    return f"http://{CRL_PLACE.address}{crl_path(key_identifier)}"
