"""One HTTP request and its response, in our own words: may it go on, what do inspectors say, what stands in the record.

    begin ──► Page (a refusal: nothing is forwarded) | None
      │
    request_body* ─► response_begin ─► response_body* ─► finish ─► RequestSeen, exactly once
        └► trailers                        └► trailers

Where what inspectors say can stop a body, or where they have to be waited for, that direction `asks`: `look` is for
`request_body` or `response_body` then.

Nothing here knows the engine behind it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING

from mitmsec.audit.event import OURS, FaultSeen, Outcome, RequestSeen
from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.messages import HandOver, Plaintext
from mitmsec.core.model import Action, Delivery
from mitmsec.engine import authority, heads, pages
from mitmsec.engine.content import is_coded
from mitmsec.engine.heads import Fields
from mitmsec.engine.pages import Page
from mitmsec.engine.seams import Records
from mitmsec.engine.split import SplitReading, open_body
from mitmsec.engine.watch import ADDON_FAILED, Blocked, Improper, Reading, Watch, stopped_by
from mitmsec.engine.withheld import HOLD_BYTES, Withheld, withheld

if TYPE_CHECKING:
    from mitmsec.engine.plain_addons import PlainAddons

WHOLE_BYTES = 1 << 20  # where addons are asked: a body that says it is longer, or not how long, goes by as a stream
METHOD_LIMIT_CHARS = 64
CONTENT_TYPE_LIMIT_CHARS = 256
TARGET_LIMIT_CHARS = 8192  # of the record, not of the request


class Exchange:
    """`hand_over` says what was decided for the connection that this exchange runs on."""

    __slots__ = (
        "_answered_by",
        "_content_type",
        "_finished",
        "_hand_over",
        "_host",
        "_is_stopped",
        "_method",
        "_modified_by",
        "_on_finished",
        "_port",
        "_raw_target",
        "_reading_request",
        "_reading_response",
        "_recorder",
        "_request_bytes",
        "_response_bytes",
        "_scheme",
        "_seen_by",
        "_status",
        "_version",
        "_watch",
        "_withheld",
        "answer_has_body",
        "answer_held",
        "blocked",
        "held",
        "refused",
    )  # fmt: skip

    def __init__(
        self,
        hand_over: HandOver,
        watch: Watch,
        recorder: Records,
        *,
        on_finished: Callable[[Exchange], None] | None = None,
    ) -> None:
        self._on_finished = on_finished
        self._hand_over, self._watch, self._recorder = hand_over, watch, recorder
        self._scheme = "https" if hand_over.kind in (Plaintext.TLS, Plaintext.QUIC) else "http"
        self._host, self._port = hand_over.name, hand_over.port or hand_over.origin.port
        self._method = self._raw_target = self._version = ""
        self._status: int | None = None
        self._content_type: str | None = None
        self._request_bytes = self._response_bytes = 0
        self._reading_request: Reading | SplitReading | None = None
        self._reading_response: Reading | SplitReading | None = None
        self._finished = False
        self._withheld: dict[bool, Withheld] = {}  # by whether it is sent
        self.held = False  # the request's body is kept back until it has been inspected as a whole
        self.answer_has_body = True  # for all that is known
        self.answer_held = False  # likewise the answer, with its head
        self._is_stopped = False  # by a finding
        self._seen_by: dict[str, None] = {}  # addons
        self._modified_by: dict[str, None] = {}
        self._answered_by: str | None = None
        self.blocked: Blocked | None = None  # by what a hook of mitmproxy's brought to light, until that is acted upon
        self.refused: Page | None = None

    # -- the request ---------------------------------------------------------------------------------------------------
    def begin(
        self,
        method: bytes,
        target: bytes,
        version: str,
        authorities: list[bytes],
        fields: Fields,
        *,
        has_body: bool,
        led_to: bytes = b"",
    ) -> Page | None:
        """The refusal of this request, or None where it may go on.

        `led_to` is the authority of a target in absolute form: where a proxy, the origin, is to lead.
        """
        self._method = method[:METHOD_LIMIT_CHARS].decode("ascii", "replace")
        self._raw_target = target.decode("utf-8", "replace")
        self._version = "HTTP/2" if version == "HTTP/2.0" else version
        if led_to and self._hand_over.kind is Plaintext.HTTP:
            self._port = authority.port_of(led_to, self._scheme) or self._port
        self.refused = heads.refusal(self._hand_over, method, version, authorities, fields) or self._forbidden()
        if self.refused is not None:
            return self._refuse(self.refused, self._asked_for(authorities))
        self.held = has_body and self._holds(fields)
        if self._watch:
            try:
                self._look_at_request(fields, has_body=has_body)
            except Blocked as blocked:
                self.refused = self.page_for(blocked)
        return self.refused

    def _refuse(self, page: Page, detail: str) -> Page:
        """By what it is, not by what it carries."""
        self.refused = pages.told(page, self._hand_over.direction)
        self._status, self._response_bytes = page.status, len(self.refused.body)
        if page.fault is not None:
            flow = self._hand_over.flow
            self._recorder.record(FaultSeen(what=page.fault, detail=detail, failed="closed", flow=flow))
        return self.refused

    def _asked_for(self, authorities: list[bytes]) -> str:
        asked = b", ".join(authorities)[:253].decode("utf-8", "backslashreplace") or "nobody"
        return f"{self._method} for {asked}, decided for {self._host}"

    # -- mitmproxy's plain addons (engine.plain_addons) ----------------------------------------------------------------
    def visited(self, seen: Iterable[str], changed: Iterable[str], faults: Iterable[str]) -> None:
        """Addons have been asked about a message of it. Raises Blocked, where one failed and failures close."""
        self._seen_by.update(dict.fromkeys(seen))
        self._modified_by.update(dict.fromkeys(changed))
        for detail in faults:
            self._watch.failed(ADDON_FAILED, detail)

    def admit_again(
        self,
        method: bytes,
        target: bytes,
        authorities: list[bytes],
        fields: Fields,
        *,
        is_led: bool,
        content: bytes,
        changed_by: Iterable[str],
    ) -> None:
        """The request is another one now. Raises Blocked. `is_led`: to another origin. `content`: of all that is there.

        Nothing of it has gone on. What stands in the record is what the origin gets.
        """
        self._method = method[:METHOD_LIMIT_CHARS].decode("ascii", "replace")
        self._raw_target = target.decode("utf-8", "replace")
        version = "HTTP/2.0" if self._version == "HTTP/2" else self._version
        page = heads.refusal(self._hand_over, method, version, authorities, fields)
        if is_led:
            page = pages.misdirected(self._hand_over.flow)
        if page is not None:
            raise Improper(page, f"{self._asked_for(authorities)}, by {', '.join(changed_by)}")
        if self._watch:
            if self._reading_request is not None:  # nothing has been fed to it
                self._reading_request.abandon()
            self.held = self.held or bool(content)
            self._look_at_request(fields, has_body=bool(content) or self._reading_request is not None)

    def answered(self, name: str, size_bytes: int) -> None:
        """An addon has answered it."""
        self._answered_by, self._response_bytes = f"addon {name}", size_bytes

    def response_again(self, status: int, fields: Fields, content: bytes) -> None:
        """The answer, all of which is there, is another one now. Raises Blocked."""
        if self._reading_response is not None:
            self._reading_response.abandon()
        self.response_begin(status, fields, has_body=bool(content))
        self.answer_held = True

    def _forbidden(self) -> Page | None:
        decision = self._hand_over.decision
        return pages.forbidden(self._hand_over.flow, decision) if decision.action is Action.BLOCK else None

    def _look_at_request(self, fields: Fields, *, has_body: bool) -> None:
        self._watch.look(self._part(PartKind.URL, sent=True), self._full_url().encode())
        self._watch.look(self._part(PartKind.HEADERS, sent=True), heads.as_text(fields))
        if not has_body:
            return
        part = self._part(PartKind.BODY, sent=True, content_type=heads.field(fields, b"content-type"))
        self._reading_request = self._body(part, fields)
        self._withhold(self._reading_request, fields, sent=True)

    def _holds(self, fields: Fields) -> bool:
        has_addons = self._watch.addons is not None
        if not has_addons and not (self._watch.acts and self._watch.delivery is Delivery.HOLD):
            return False
        size_bytes = heads.length(fields)
        return size_bytes is not None and size_bytes <= (WHOLE_BYTES if has_addons else HOLD_BYTES)

    def _body(self, part: Part, fields: Fields) -> Reading | SplitReading | None:
        return open_body(
            self._watch, part, heads.field(fields, b"content-encoding"), heads.field(fields, b"grpc-encoding")
        )

    def _withhold(self, reading: Reading | SplitReading | None, fields: Fields, *, sent: bool) -> None:
        if reading is None or not (self._watch.prompt or reading.waits or reading.unfolds):
            return
        if self.held if sent else self.answer_held:
            made = Withheld(HOLD_BYTES)
        elif not self._watch.prompt:
            made = Withheld(0)
        else:
            made = withheld(self._watch.delivery, heads.length(fields), masks=self._watch.masks)
        self._withheld[sent] = made
        if self._watch.masks and not is_coded(heads.field(fields, b"content-encoding")):
            reading.mask = made.mask

    def withheld(self, *, sent: bool) -> Withheld:
        """What of the body in this direction has not gone on; for a direction that `asks`."""
        return self._withheld[sent]

    @property
    def addons(self) -> PlainAddons | None:
        """Plain ones of mitmproxy's."""
        return self._watch.addons

    @property
    def wants_plain(self) -> bool:
        """The answer should travel without a content coding: else nothing in it can be masked."""
        return bool(self._watch) and self._watch.masks

    def asks(self, *, sent: bool) -> bool:
        """Nothing of the body in this direction goes on by itself: inspectors have to be asked, with `look`."""
        return sent in self._withheld

    @property
    def goes_first(self) -> bool:
        """What is asked about goes on before there is an answer, as far as it is not withheld."""
        return not self._watch.prompt or self._watch.delivery is Delivery.TAIL

    @property
    def is_impatient(self) -> bool:
        """What is withheld goes on after a while, for somebody may wait for it."""
        return self._watch.delivery is not Delivery.TAIL

    def look(self, data: bytes, *, sent: bool, ends: bool) -> Coroutine[None, None, Blocked | None] | Blocked | None:
        """Have inspectors read the next of a body: what stops it, if anything does, or what has to be awaited first."""
        if sent:
            self._request_bytes += len(data)
        else:
            self._response_bytes += len(data)
        reading = self._reading_request if sent else self._reading_response
        if reading is None:
            return None
        if ends:
            reading.has_all()
        if reading.waits:
            return stopped_by(reading.read(data, ends=ends))
        try:
            reading.feed(data)
            if reading.is_behind:
                return stopped_by(reading.read(b"", ends=ends))
            if ends:
                reading.close()
            elif self._watch.prompt:
                reading.settle()
        except Blocked as blocked:
            return blocked
        return None

    def request_body(self, data: bytes) -> bytes:
        """The next bytes of the request's body, b"" at its end; what to forward. Raises Blocked."""
        self._request_bytes += len(data)
        _read(self._reading_request, data)
        return data

    # -- the response --------------------------------------------------------------------------------------------------
    def response_begin(self, status: int, fields: Fields, *, has_body: bool) -> None:
        """Raises Blocked."""
        if self.refused is not None:
            return
        self._status = status
        self._content_type = heads.field(fields, b"content-type")[:CONTENT_TYPE_LIMIT_CHARS] or None
        self.answer_held = has_body and self._holds(fields)
        if not self._watch:
            return
        content_type = self._content_type or ""
        self._watch.look(self._part(PartKind.HEADERS, sent=False, content_type=content_type), heads.as_text(fields))
        if has_body:
            part = self._part(PartKind.BODY, sent=False, content_type=content_type)
            self._reading_response = self._body(part, fields)
            self._withhold(self._reading_response, fields, sent=False)

    def response_body(self, data: bytes) -> bytes:
        """The next bytes of the response's body, b"" at its end; what to forward. Raises Blocked."""
        self._response_bytes += len(data)
        _read(self._reading_response, data)
        return data

    def trailers(self, fields: Fields, *, sent: bool) -> None:
        """What follows a body (RFC 9110 §6.5), read as headers are. Raises Blocked."""
        if self._watch and self.refused is None:
            self._watch.look(self._part(PartKind.HEADERS, sent=sent), heads.as_text(fields))

    # -- the end -------------------------------------------------------------------------------------------------------
    def finish(self) -> None:
        """The exchange is over, complete or not. Idempotent."""
        if self._finished:
            return
        self._finished = True
        for reading in (self._reading_request, self._reading_response):
            with contextlib.suppress(Blocked):  # recorded; too late for more
                _read(reading, b"")
            if reading is not None:
                reading.abandon()
        self._recorder.record(
            RequestSeen(
                flow=self._hand_over.flow,
                method=self._method,
                url=self.url,
                http_version=self._version,
                status=self._status,
                request_bytes=self._request_bytes,
                response_bytes=self._response_bytes,
                content_type=self._content_type,
                outcome=Outcome.BLOCKED if self._is_stopped else None,
                answered_by=self._answered_by if self.refused is None else OURS,
                seen_by=tuple(self._seen_by),
                modified_by=tuple(self._modified_by),
            )
        )
        if self._on_finished is not None:
            self._on_finished(self)

    def stop(self) -> None:
        """A finding, or a failure, breaks it off."""
        self._is_stopped = True

    def page_for(self, blocked: Blocked, *, sent: bool = True) -> Page:
        """What tells the client of `blocked`; from now on the exchange is refused. `sent`: its request carried it."""
        if isinstance(blocked, Improper):
            return self._refuse(blocked.page, str(blocked))
        self.stop()
        what = "this request" if sent else "the answer to this request"
        page = pages.blocked(self._hand_over.flow, self._hand_over.decision.rule, str(blocked), what)
        self.refused = pages.told(page, self._hand_over.direction)
        self._status, self._content_type = self.refused.status, None
        self._response_bytes = len(self.refused.body)
        return self.refused

    @property
    def url(self) -> str:
        """Without query values, under the decided name."""
        target = self._raw_target[:TARGET_LIMIT_CHARS]
        return authority.public_url(self._scheme, self._host, self._port, target)

    def _full_url(self) -> str:
        return f"{self._scheme}://{self._host}{self._raw_target}"

    def stream(self, *, sent: bool) -> Part:
        """The part that follows an upgrade of this exchange."""
        return self._part(PartKind.STREAM, sent=sent)

    def _part(self, kind: PartKind, *, sent: bool, content_type: str = "") -> Part:
        return Part(
            flow=self._hand_over.flow,
            kind=kind,
            sent=sent,
            host=self._host,
            method=self._method,
            url=self.url,
            content_type=content_type,
        )


def _read(reading: Reading | SplitReading | None, data: bytes) -> None:
    if reading is not None:
        if data:
            reading.feed(data)
        else:
            reading.close()
