"""Which addresses a name was reached at, as far as this run's own programs have shown.

Behind the gate every connect() succeeds, so a client's own Happy Eyeballs (RFC 8305) cannot work: it takes the first
address for a good one. When that one refuses or is slow, the gate tries the others here. Only names from TLS hellos are
kept; and only addresses that did answer, for those who can tell a false one: what a program may verify for itself
(bypass, capture) is known to flows that are relayed alike, what a worker has verified to flows that are decrypted. So a
flow whose origin proved nothing teaches nobody, not under `upstream = "accept"` either, where nobody would notice.
"""

from __future__ import annotations

from collections import OrderedDict

from mitmsec.core.model import Action, Endpoint

NAMES_LIMIT = 1024  # the least recently used goes first
ADDRESSES_LIMIT = 6  # of one name; more would only prolong a failure


class Names:
    """A bounded memory of (name, port, action) → addresses, newest first."""

    def __init__(self, limit: int = NAMES_LIMIT) -> None:
        self._limit = limit
        self._known: OrderedDict[tuple[str, int, Action], tuple[Endpoint, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def answered(self, name: str, remote: Endpoint, action: Action) -> None:
        """`remote` took a connection for `name`; under decrypt, it has proved the name."""
        key = (name, remote.port, action)
        others = tuple(known for known in self._known.get(key, ()) if known != remote)
        self._known[key] = (remote, *others)[:ADDRESSES_LIMIT]
        self._known.move_to_end(key)
        if len(self._known) > self._limit:
            self._known.popitem(last=False)

    def others(self, name: str, remote: Endpoint, action: Action) -> tuple[Endpoint, ...]:
        """Addresses of `name` at the same port other than `remote`, the most recent first."""
        return tuple(known for known in self._known.get((name, remote.port, action), ()) if known != remote)
