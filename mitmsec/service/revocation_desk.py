"""What issuers said, remembered; and asked again once that is old. Shared by the threads of a broker.

    certificate ─► kept? ─ no ─► OCSP responders ─ unknown ─► lists, each kept for all whom it is about ─► kept
                    └─ yes ─► the answer

Bounded: the statuses by number, the lists by bytes, oldest out. What could not be found out is asked again soon.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from mitmsec.core.origin_proof import Standing, Status
from mitmsec.service.fetching import FetchFailed, Unreachable, fetch
from mitmsec_certs.revocation import by_crl, by_ocsp
from mitmsec_certs.revocation_sources import ocsp_question, sources_of

STATUSES_LIMIT = 10_000
LISTS_LIMIT_BYTES = 64 << 20
LIST_LIMIT_BYTES = 16 << 20
ANSWER_LIMIT_BYTES = 64 << 10
DEADLINE_S = 10.0  # for one source
AGAIN_S = 60  # after a failure
SILENT_S = 300  # for which a host that nobody answers at is not tried again, by whatever certificate
HOSTS_LIMIT = 1024
KEEP_S = 86_400  # at most, whatever the issuer permits
OCSP_REQUEST = "application/ocsp-request"

type Fetch = Callable[..., bytes]


class RevocationDesk:
    """Answers about certificates. Blocks while it asks."""

    def __init__(self, *, fetch: Fetch = fetch, clock_s: Callable[[], float] = time.time) -> None:
        self._fetch, self._clock_s = fetch, clock_s
        self._lock = threading.Lock()
        self._statuses: OrderedDict[bytes, Status] = OrderedDict()
        self._lists: OrderedDict[str, tuple[bytes, int]] = OrderedDict()  # by address: the list, until when
        self._listed_bytes = 0
        self._silent: OrderedDict[str, float] = OrderedDict()  # by host: until when

    def statuses(self, chain: tuple[bytes, ...]) -> tuple[Status, ...]:
        """Of each certificate (DER) but the last, whose issuer is the next."""
        return tuple(self._status(der, issuer) for der, issuer in pairwise(chain))

    def _status(self, der: bytes, issuer: bytes) -> Status:
        sources = sources_of(der)
        if not sources:
            return Status(standing=Standing.UNASKED)
        now_s = int(self._clock_s())
        key = hashlib.sha256(der + issuer).digest()
        with self._lock:
            kept = self._statuses.get(key)
        if kept is not None and now_s < kept.until_s:
            return kept
        status = self._asked(der, issuer, now_s)
        longest_s = AGAIN_S if status.standing is Standing.UNKNOWN else KEEP_S
        ends_s = now_s + longest_s if status.standing is Standing.UNKNOWN else min(status.until_s, now_s + longest_s)
        status = Status(standing=status.standing, text=status.text, until_s=ends_s)
        with self._lock:
            self._statuses[key] = status
            self._statuses.move_to_end(key)
            while len(self._statuses) > STATUSES_LIMIT:
                self._statuses.popitem(last=False)
        return status

    def _asked(self, der: bytes, issuer: bytes, now_s: int) -> Status:
        """The first word that says something; else the first failure."""
        sources = sources_of(der)
        failures: list[Status] = []
        for url in sources.ocsp:
            status = self._by_ocsp(url, der, issuer, now_s)
            if status.standing is not Standing.UNKNOWN:
                return status
            failures.append(status)
        for url in sources.crl:
            status = self._by_crl(url, der, issuer, now_s)
            if status.standing is not Standing.UNKNOWN:
                return status
            failures.append(status)
        return failures[0]

    def _by_ocsp(self, url: str, der: bytes, issuer: bytes, now_s: int) -> Status:
        try:
            answer = self._fetched(
                url, limit_bytes=ANSWER_LIMIT_BYTES, body=ocsp_question(der, issuer), kind=OCSP_REQUEST
            )
        except FetchFailed as error:
            return Status(standing=Standing.UNKNOWN, text=f"the OCSP responder {url}: {error}")
        return by_ocsp(answer, der, issuer, now_s)

    def _by_crl(self, url: str, der: bytes, issuer: bytes, now_s: int) -> Status:
        with self._lock:
            kept = self._lists.get(url)
        if kept is not None and now_s < kept[1]:
            return by_crl(kept[0], der, issuer, url, now_s)
        try:
            crl = self._fetched(url, limit_bytes=LIST_LIMIT_BYTES)
        except FetchFailed as error:
            return Status(standing=Standing.UNKNOWN, text=f"the revocation list {url}: {error}")
        status = by_crl(crl, der, issuer, url, now_s)
        if status.standing is not Standing.UNKNOWN:
            self._keep(url, crl, min(status.until_s, now_s + KEEP_S))
        return status

    def _fetched(self, url: str, **more: Any) -> bytes:
        """Raises FetchFailed, and at once where nobody answered a moment ago: a network that lets nothing out would
        cost every handshake its whole patience."""
        host = urlsplit(url).netloc
        with self._lock:
            if self._clock_s() < self._silent.get(host, 0):
                raise Unreachable("nobody answered there lately")
        try:
            return self._fetch(url, deadline_s=DEADLINE_S, **more)
        except Unreachable:
            with self._lock:
                self._silent[host] = self._clock_s() + SILENT_S
                while len(self._silent) > HOSTS_LIMIT:
                    self._silent.popitem(last=False)
            raise

    def _keep(self, url: str, crl: bytes, until_s: int) -> None:
        with self._lock:
            before = self._lists.pop(url, None)
            self._lists[url] = crl, until_s
            self._listed_bytes += len(crl) - (len(before[0]) if before is not None else 0)
            while self._listed_bytes > LISTS_LIMIT_BYTES:
                self._listed_bytes -= len(self._lists.popitem(last=False)[1][0])
