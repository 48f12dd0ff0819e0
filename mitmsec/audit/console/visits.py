"""One request of somebody's browser: who it is, what they sent, and what they are answered with."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import parse_qsl

from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from mitmsec.audit.console import query
from mitmsec.audit.console.desk_store import Account, Session
from mitmsec.audit.console.duty import Deed, Person
from mitmsec.audit.console.ground import Ground
from mitmsec.audit.event import ReviewSeen

FORM_LIMIT_BYTES, FIELDS_LIMIT = 128 << 10, 600
FORM_S = 15.0  # for a form to come


class Unrecorded(Exception):
    """The log did not take it, so it was not done."""


class BadForm(Exception):
    """What was sent is no form of ours."""


class NotFound(Exception):
    """There is nothing of that name."""


class Recorder(Protocol):
    """Remembers which looks are on record already."""

    def knows(self, look: tuple[str, str]) -> bool: ...
    def note(self, look: tuple[str, str]) -> None: ...


class Visit:
    """Of a person, or (on public pages) of nobody."""

    def __init__(
        self,
        request: Request,
        ground: Ground,
        templates: Environment,
        session: Session | None,
        account: Account | None,
        looks: Recorder,
    ) -> None:
        self.request, self.ground, self.session, self.account = request, ground, session, account
        self.now = ground.now()
        self.form: dict[str, str] = {}
        self.chosen: tuple[str, ...] = ()  # the values of all `chosen` fields
        self._templates, self._looks = templates, looks

    @property
    def person(self) -> Person:
        """Who has signed in. AssertionError on a public page."""
        assert self.account is not None
        return Person(name=self.account.name, duty=self.account.duty)

    @property
    def address(self) -> str:
        return self.request.client.host if self.request.client else ""

    @property
    def query(self) -> query.Query:
        return query.read(self.request.query_params.multi_items(), self.now)

    def part(self, name: str) -> str:
        """A part of the path."""
        return str(self.request.path_params[name])

    def asked(self, name: str, default: str = "") -> str:
        """A word in the address."""
        return self.request.query_params.get(name, default)[: query.TEXT_LIMIT_CHARACTERS]

    def number(self, name: str) -> int | None:
        """A number in the address."""
        text = self.asked(name)
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None

    def take_form(self, body: bytes | None) -> None:
        """Raises BadForm, also where it lacks the session's token."""
        if body is None:
            raise BadForm("it was more than a form holds, or took too long to come")
        try:
            pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=FIELDS_LIMIT)
        except ValueError as error:
            raise BadForm("that is no form") from error
        self.form = dict(pairs)
        self.chosen = tuple(value for name, value in pairs if name == "chosen")
        if self.session is not None and not secrets.compare_digest(
            self.form.get("csrf", "").encode(), self.session.csrf.encode()
        ):
            raise BadForm("this form is an old one; go back, reload the page, and send it again")

    def _named(self) -> str:
        """Who signs in, as an account has it: whatever else is typed there may be a password, and is on no record."""
        name = self.form.get("name", "")
        return name if self.ground.desk.account(name) is not None else ""

    async def record(self, operation: str, item: str, detail: str = "", people: tuple[str, ...] = ()) -> None:
        """It is on disk when this returns. Raises Unrecorded."""
        user = self.account.name if self.account is not None else self._named()
        if not await self.ground.record(
            ReviewSeen(operation=operation, item=item, user=user, people=people, keys=(), detail=detail)
        ):
            raise Unrecorded

    async def record_look(self, operation: str, item: str) -> None:
        """That somebody sees something: once for a while. Raises Unrecorded."""
        assert self.session is not None
        look = (self.session.token, f"{operation} {item}")
        if not self._looks.knows(look):
            await self.record(operation, item)
            self._looks.note(look)

    # -- answers -------------------------------------------------------------------------------------------------------
    def page(
        self, template: str, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
    ) -> Response:
        person = self.person if self.account is not None else None
        waiting = len(self.ground.desk.waiting()) if person is not None and person.may(Deed.APPROVE) else 0
        common = {
            "person": person,
            "csrf": self.session.csrf if self.session is not None else "",
            "now": self.now,
            "path": self.request.url.path,
            "waiting": waiting,
            "said": self.asked("said") if self.request.method == "GET" else "",
            "Deed": Deed,
        }
        text = self._templates.get_template(template).render(common | values)
        return HTMLResponse(text, status, headers)

    def go(self, address: str) -> Response:
        """After a form, so that to reload sends nothing again."""
        return RedirectResponse(address, 303)


async def read_body(request: Request) -> bytes | None:
    """What a form brings; None, if that is too much, or takes too long."""
    body = b""
    try:
        async with asyncio.timeout(FORM_S):
            async for piece in request.stream():
                body += piece
                if len(body) > FORM_LIMIT_BYTES:
                    return None
    except TimeoutError:
        return None
    return body
