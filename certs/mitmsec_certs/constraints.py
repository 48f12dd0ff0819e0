"""For which names a CA may speak: what `--permit` and `--exclude` say, what a certificate says, and whom that leaves.

The rules are those of RFC 5280, 4.2.1.10, as verifiers apply them. A host name stands for itself and all below it;
with a dot before it, as some CAs write it, only for what is below. A network stands for its addresses. What is excluded
stays so, whatever is permitted. Where something is permitted, all else is not, also of the other kind: a CA that may
speak for names alone may speak for no address.

One name is permitted always, for the leaf that mirrors an origin's wrong name has to carry it: it lies below `.invalid`
(RFC 6761), so nobody can ever be reached under it.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from mitmsec.core.model import Value
from mitmsec.core.names import is_address, written_name

WRONG_NAME = "wrong-name.mitmsec.invalid"
EVERY_ADDRESS = ("0.0.0.0/0", "::/0")

_WANTED = "a name (corp.example) or a network (10.0.0.0/8) is wanted"

type Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class BadConstraint(ValueError):
    """What was written cannot be meant so; each flaw says which and what to write."""

    def __init__(self, flaws: Sequence[str]) -> None:
        super().__init__("; ".join(flaws))
        self.flaws = tuple(flaws)


class Constraints(Value, frozen=True):
    """Names are comparable (mitmsec.core.names); networks are canonical, in CIDR notation."""

    permitted_names: tuple[str, ...] = ()
    permitted_networks: tuple[str, ...] = ()
    excluded_names: tuple[str, ...] = ()
    excluded_networks: tuple[str, ...] = ()

    @property
    def are_none(self) -> bool:
        return self == UNCONSTRAINED

    def allow(self, name: str) -> bool:
        """Whether a certificate for `name`, a comparable host name or a canonical address, is within them."""
        if is_address(name):
            return _among(name, self.permitted_networks, self._nothing_permitted) and not _among(
                name, self.excluded_networks, otherwise=False
            )
        if name == WRONG_NAME:
            return True
        permitted = self._nothing_permitted or any(_covers(base, name) for base in self.permitted_names)
        return permitted and not any(_covers(base, name) for base in self.excluded_names)

    @property
    def _nothing_permitted(self) -> bool:
        """So all is."""
        return not self.permitted_names and not self.permitted_networks

    @property
    def permitted(self) -> tuple[str, ...]:
        """Names and networks, as a person writes them."""
        return self.permitted_names + self.permitted_networks

    @property
    def excluded(self) -> tuple[str, ...]:
        return self.excluded_names + self.excluded_networks


UNCONSTRAINED = Constraints()


def written(permit: Iterable[str], exclude: Iterable[str]) -> Constraints:
    """What a person wrote. Raises BadConstraint, with all that is wrong."""
    flaws: list[str] = []
    permitted_names, permitted_networks = _sorted(permit, flaws)
    excluded_names, excluded_networks = _sorted(exclude, flaws)
    found = Constraints(
        permitted_names=permitted_names,
        permitted_networks=permitted_networks,
        excluded_names=excluded_names,
        excluded_networks=excluded_networks,
    )
    flaws += _taken_back(found)
    if flaws:
        raise BadConstraint(flaws)
    return found


def _taken_back(said: Constraints) -> Iterator[str]:
    """What is permitted, and then excluded to the last."""
    for name in said.permitted_names:
        if any(_covers(base, name) for base in said.excluded_names):
            yield f'"{name}" is permitted, and all of it is excluded'
    for network in said.permitted_networks:
        if any(_lies_in(network, base) for base in said.excluded_networks):
            yield f'"{network}" is permitted, and all of it is excluded'


def _lies_in(network: str, base: str) -> bool:
    inner, outer = ipaddress.ip_network(network), ipaddress.ip_network(base)
    return inner.version == outer.version and inner[0] in outer and inner[-1] in outer


def _sorted(words: Iterable[str], flaws: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and networks; what is neither is added to `flaws`."""
    names: list[str] = []
    networks: list[str] = []
    for word in words:
        try:
            if "/" in word or is_address(word):
                networks.append(str(_network(word)))
            else:
                names.append(_name(word))
        except ValueError as error:
            flaws.append(str(error))
    return tuple(dict.fromkeys(names)), tuple(dict.fromkeys(networks))


def _name(word: str) -> str:
    if "*" in word:
        raise ValueError(f'"{word}": write the name alone; it stands for all below it too')
    try:
        return written_name(word)
    except ValueError as error:
        raise ValueError(f"{error}; {_WANTED}") from None


def _network(word: str) -> Network:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_network(word.strip("[]"))
    try:
        whole = ipaddress.ip_network(word.strip("[]"), strict=False)
    except ValueError:
        raise ValueError(f'"{word}" is no network; {_WANTED}') from None
    raise ValueError(f'"{word}" is no network; "{whole}" is the one that this address lies in')


def _among(address: str, networks: tuple[str, ...], otherwise: bool) -> bool:
    """Whether one of `networks` holds `address`; `otherwise` where there are none."""
    wanted = ipaddress.ip_address(address)
    return any(wanted in ipaddress.ip_network(network) for network in networks) if networks else otherwise


def _covers(base: str, name: str) -> bool:
    """An empty base covers every name."""
    if base.startswith("."):
        return name.endswith(base)
    return not base or name == base or name.endswith(f".{base}")
