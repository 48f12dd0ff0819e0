"""Name constraints as they stand in a certificate, written and read."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from cryptography import x509

from mitmsec_certs.constraints import EVERY_ADDRESS, UNCONSTRAINED, WRONG_NAME, Constraints


def extension_of(constraints: Constraints) -> x509.NameConstraints | None:
    """None where there is nothing to write. Verifiers take what is of no permitted kind for permitted, so that is
    written out: addresses as excluded, names by the one that is permitted always."""
    if constraints.are_none:
        return None
    excluded = constraints.excluded_networks
    if constraints.permitted_names and not constraints.permitted_networks:
        excluded = tuple(dict.fromkeys((*excluded, *EVERY_ADDRESS)))
    permitted = (*constraints.permitted_names, WRONG_NAME) if constraints.permitted else ()
    return x509.NameConstraints(
        permitted_subtrees=_general(permitted, constraints.permitted_networks),
        excluded_subtrees=_general(constraints.excluded_names, excluded),
    )


def constraints_of(certificate: x509.Certificate) -> Constraints:
    """What `certificate` says of host names and addresses. Raises ValueError for an extension that cannot be read."""
    found = _found(certificate)
    if found is None:
        return UNCONSTRAINED
    names, networks = _read(found.permitted_subtrees)
    excluded_names, excluded_networks = _read(found.excluded_subtrees)
    if names or networks:
        if not names:
            names = ("",)
        if not networks and set(EVERY_ADDRESS) <= set(excluded_networks):
            excluded_networks = tuple(one for one in excluded_networks if one not in EVERY_ADDRESS)
        elif not networks:
            networks = EVERY_ADDRESS
    others = tuple(name for name in names if name != WRONG_NAME)
    return Constraints(
        permitted_names=others if others or networks else names,
        permitted_networks=networks,
        excluded_names=excluded_names,
        excluded_networks=excluded_networks,
    )


def limits_subjects(certificate: x509.Certificate) -> bool:
    """Whether only certain subjects may stand in what `certificate` signs; then a leaf has to have none."""
    found = _found(certificate)
    subtrees = () if found is None else (*(found.permitted_subtrees or ()), *(found.excluded_subtrees or ()))
    return any(isinstance(name, x509.DirectoryName) for name in subtrees)


def _found(certificate: x509.Certificate) -> x509.NameConstraints | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return None


def _general(names: Iterable[str], networks: Iterable[str]) -> list[x509.GeneralName] | None:
    """None, not an empty list, where there are none (RFC 5280, 4.2.1.10)."""
    every: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    every += [x509.IPAddress(ipaddress.ip_network(network)) for network in networks]
    return every or None


def _read(subtrees: Iterable[x509.GeneralName] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = [name.value.lower() for name in subtrees or () if isinstance(name, x509.DNSName)]
    networks = [str(name.value) for name in subtrees or () if isinstance(name, x509.IPAddress)]
    return tuple(names), tuple(networks)
