"""What a recogniser of upgrades answers, and what all of them have in common."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from enum import Enum, auto

from mitmsec.core.clienthello import Malformed

NOT_ALONE = "the client goes on behind its request for TLS"
NOT_LAST = "the server goes on behind its consent to TLS"
NO_ANSWER = "the request for TLS is answered with something else"
NOT_ASKED = "the client begins TLS, or something else, where the dialogue has no place for it"

NOT_SEEN = "the server begins TLS, and nobody was seen to agree to it"

_SERVER_HELLO = re.compile(rb"\x16\x03[\x00-\x04]..\x02\x00..\x03[\x00-\x04]", re.DOTALL)  # record, message, version
_SERVER_HELLO_BYTES = 11


class Step(Enum):
    """What follows from the bytes so far."""

    ON = auto()
    """They are plaintext; so is what comes."""
    UPGRADE = auto()
    """They are plaintext; what the client says next is the hello of TLS."""


class Recogniser(ABC):
    """One dialogue. `sent` and `received` take its bytes as they come, and never raise. Deaf after UPGRADE.

    A client can word its request so that we miss it and its server does not, and somebody on the way can word the
    consent so. What happens then is always the same, and neither can hide it: the server begins TLS.
    """

    reads_bytes: int | None = None
    """At most so many of the client's next bytes may be taken at a time; None: as many as there are."""

    def __init__(self) -> None:
        self.port = 0
        """Of a tunnel: to which port the client asked the proxy to lead; 0: not told."""
        self.is_asked = False
        """The client has asked for TLS, and the server has not answered."""
        self._is_over = False
        """There will be no upgrade any more."""
        self._is_lost = False
        """It is not followed any more, and may go on under TLS for all we know."""
        self._end = b""  # of what the server has said

    def sent(self, data: bytes) -> Step | Malformed:
        """The client's next bytes, one at least."""
        if self.is_asked:
            return Malformed(reason=NOT_ALONE)
        return Step.ON if self._is_over or self._is_lost else self._sent(data)

    def received(self, data: bytes) -> Step | Malformed:
        """The server's next bytes, one at least."""
        if self._is_over:
            return Step.ON
        if self._begins_tls(data):
            return Malformed(reason=NOT_SEEN)
        return Step.ON if self._is_lost else self._received(data)

    def _begins_tls(self, data: bytes) -> bool:
        """Wherever in it: a client may not await the consent, so that both come in one piece."""
        heard = self._end + data
        self._end = heard[1 - _SERVER_HELLO_BYTES :]
        return _SERVER_HELLO.search(heard) is not None

    def _asks(self, *, is_last: bool) -> Step | Malformed:
        """The client's request is complete."""
        self.is_asked = True
        return Step.ON if is_last else Malformed(reason=NOT_ALONE)

    def _consents(self, *, is_last: bool) -> Step | Malformed:
        """The server's consent is complete."""
        self.is_asked, self._is_over = False, True
        return Step.UPGRADE if is_last else Malformed(reason=NOT_LAST)

    @abstractmethod
    def _sent(self, data: bytes) -> Step | Malformed: ...

    @abstractmethod
    def _received(self, data: bytes) -> Step | Malformed: ...
