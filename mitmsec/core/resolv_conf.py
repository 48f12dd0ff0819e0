"""The name servers that a machine's /etc/resolv.conf names (resolv.conf(5))."""

from __future__ import annotations

from ipaddress import ip_address


def nameservers(text: str) -> tuple[str, ...]:
    """Their addresses, canonical, in their order and each once. Lines that say nothing of the kind are passed over."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        word, *values = line.split() or [""]
        if word == "nameserver" and values and (address := _canonical(values[0])) is not None:
            found[address] = None
    return tuple(found)


def _canonical(word: str) -> str | None:
    """None: it is no address, or one that means something on one link only."""
    try:
        return None if "%" in word else str(ip_address(word))
    except ValueError:
        return None
