"""Services whose certificate and key are known (`[[inbound]]`): so connections that come in for them can be decrypted.

Which one a connection is for, port and name decide. The first of the policy's entries that is for both has it; without
one, nobody here can read the connection, and it is not decrypted.
"""

from __future__ import annotations

from collections.abc import Iterable

from mitmsec.core.model import Value
from mitmsec.core.selector import Ranges, host_patterns, merged, ports_accept

DAY_S = 86_400


class KnownService(Value, frozen=True):
    """One entry. Of the key there is nothing in it but how long the file is."""

    name: str
    certificate: str = ""
    """The file, as the policy names it; likewise `key`."""
    key: str = ""
    host: tuple[str, ...] = ()
    """Patterns; none: whom the certificate is for."""
    port: Ranges = ()
    """None: every port."""
    names: tuple[str, ...] = ()
    """Whom the certificate is for: names, `*.` for exactly one label more, addresses."""
    chain: tuple[bytes, ...] = ()
    """Certificates (DER) as a peer is shown them, the service's own first."""
    sha256: str = ""
    """Of the service's own certificate, hex."""
    not_after_s: int = 0
    """The end of its validity, Unix seconds."""
    key_bytes: int = 0
    """How much of the file with all keys is its own; keys stand in it in the order of the entries."""

    def is_for(self, port: int, name: str) -> bool:
        """`name`: what the peer asks for, or where it shows none, the address that it called."""
        if self.port and not ports_accept(merged(self.port), port):
            return False
        if self.host:
            return not set(host_patterns(name)).isdisjoint(self.host)
        return name in self.names or f"*.{name.partition('.')[2]}" in self.names

    def may_be_for(self, ports: Ranges) -> bool:
        """Whether one of `ports`, all where there are none, is one of its own."""
        mine = merged(self.port)
        return not mine or not ports or any(low <= end and start <= high for low, high in ports for start, end in mine)


def service_for(services: Iterable[KnownService], port: int, name: str) -> KnownService | None:
    """Whose connection it is."""
    return next((service for service in services if service.is_for(port, name)), None)


def doubts(services: Iterable[KnownService], now_s: int, *, are_used: bool) -> list[str]:
    """A sentence for each thing that is valid and yet not as it looks. `now_s`: Unix seconds."""
    sentences = []
    for service in services:
        if not are_used:
            sentences.append(f'[[inbound]] "{service.name}": nothing that comes in is decrypted, so it is not used')
        if service.not_after_s and service.not_after_s <= now_s:
            days = (now_s - service.not_after_s) // DAY_S
            since = "less than a day" if not days else f"{days} day{'s' if days > 1 else ''}"
            sentences.append(f'[[inbound]] "{service.name}": its certificate has expired for {since}')
    return sentences
