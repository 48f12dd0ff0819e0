"""The application: one table says which page is where, and what who opens it must be permitted to do.

request ─► Guard ─► whose session? ─► first password changed? ─► permitted? ─► form's token ─► the page
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mitmsec.audit.console import export_pages, house_pages, look_pages, review_pages
from mitmsec.audit.console.cookies import cookie_name
from mitmsec.audit.console.desk_store import Account, DeskUnusable, Session
from mitmsec.audit.console.duty import Deed, Person
from mitmsec.audit.console.entry_pages import Entry
from mitmsec.audit.console.ground import Ground
from mitmsec.audit.console.guard import App, Guard
from mitmsec.audit.console.rendering import STATIC, environment
from mitmsec.audit.console.visits import BadForm, NotFound, Unrecorded, Visit, read_body
from mitmsec.audit.reading import NoLog, Unreadable
from mitmsec.core.model import Value

type Endpoint = Callable[[Visit], Awaitable[Response]]
LOOKS_LIMIT = 10_000
TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class Place(Value, frozen=True):
    """A page. `deed` None: for everybody; `signed_in`: for whoever has signed in, whatever they may do."""

    path: str
    endpoint: Endpoint
    deed: Deed | None
    method: str = "GET"
    signed_in: bool = True


def places(entry: Entry) -> tuple[Place, ...]:
    """All of them but what lies in the static folder."""
    return (
        Place(path="/", endpoint=entry.front, deed=None, signed_in=False),
        Place(path="/notice", endpoint=house_pages.notice, deed=None, signed_in=False),
        Place(path="/sign-in", endpoint=entry.sign_in, deed=None, signed_in=False),
        Place(path="/sign-in", endpoint=entry.signed_in, deed=None, method="POST", signed_in=False),
        Place(path="/sign-out", endpoint=entry.signed_out, deed=None, method="POST"),
        Place(path="/password", endpoint=entry.password, deed=None),
        Place(path="/password", endpoint=entry.password_changed, deed=None, method="POST"),
        Place(path="/overview", endpoint=look_pages.overview, deed=Deed.LOOK),
        Place(path="/events", endpoint=look_pages.events, deed=Deed.LOOK),
        Place(path="/events/newer", endpoint=look_pages.newer, deed=Deed.LOOK),
        Place(path="/event/{number}", endpoint=look_pages.event, deed=Deed.LOOK),
        Place(path="/event/{number}/proof", endpoint=look_pages.proof, deed=Deed.LOOK),
        Place(path="/connection/{connection}", endpoint=look_pages.connection, deed=Deed.LOOK),
        Place(path="/queue", endpoint=review_pages.queue, deed=Deed.LOOK),
        Place(path="/queue", endpoint=review_pages.dismissed, deed=Deed.REVIEW, method="POST"),
        Place(path="/case/{event}", endpoint=review_pages.case, deed=Deed.LOOK),
        Place(path="/case/{event}", endpoint=review_pages.ordered, deed=Deed.LOOK, method="POST"),
        Place(path="/approvals", endpoint=review_pages.approvals, deed=Deed.APPROVE),
        Place(path="/views", endpoint=house_pages.views, deed=Deed.LOOK),
        Place(path="/views", endpoint=house_pages.views_changed, deed=Deed.LOOK, method="POST"),
        Place(path="/export", endpoint=export_pages.export, deed=Deed.EXPORT),
        Place(path="/export", endpoint=export_pages.exported, deed=Deed.EXPORT, method="POST"),
        Place(path="/health", endpoint=house_pages.health, deed=Deed.LOOK),
        Place(path="/health", endpoint=house_pages.verify, deed=Deed.VERIFY, method="POST"),
        Place(path="/health/progress", endpoint=house_pages.progress, deed=Deed.LOOK),
        Place(path="/administration", endpoint=house_pages.administration, deed=Deed.ADMINISTER),
        Place(path="/administration", endpoint=house_pages.administered, deed=Deed.ADMINISTER, method="POST"),
    )


class Looks:
    """Which looks are on record: once for a session. At most LOOKS_LIMIT; then those of long ago are recorded again."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    def knows(self, look: tuple[str, str]) -> bool:
        return look in self._known

    def note(self, look: tuple[str, str]) -> None:
        self._known[look] = None
        while len(self._known) > LOOKS_LIMIT:
            self._known.popitem(last=False)


POLLED = frozenset({"/events/newer", "/health/progress"})  # by pages, whether or not somebody looks at them


class Console:
    """`app` is what a server serves."""

    def __init__(self, ground: Ground) -> None:
        self._ground, self._templates, self._looks = ground, environment(), Looks()
        self._static = {path.name: path.read_bytes() for path in STATIC.iterdir() if path.suffix[1:] in TYPES}
        self.entry = Entry()
        self.places = places(self.entry)
        routes = [
            Route(place.path, self._opened(place), methods=[place.method], name=f"{place.method} {place.path}")
            for place in self.places
        ]
        routes.append(Route("/static/{name}", self._static_file, name="static"))
        missing = {404: self._missing, 405: self._missing}
        self.app: App = Guard(Starlette(routes=routes, exception_handlers=missing), ground.hosts, secure=ground.secure)

    def _opened(self, place: Place) -> Callable[[Request], Awaitable[Response]]:
        async def opened(request: Request) -> Response:
            body = (
                await read_body(request) if place.method == "POST" else b""
            )  # whoever is slow is judged when it is here
            session, account = self._session(request, is_use=place.path not in POLLED)
            visit = Visit(request, self._ground, self._templates, session, account, self._looks)
            try:
                return await self._answer(place, visit, body)
            except BadForm as error:
                return _error(visit, 400, "That could not be taken", str(error))
            except NotFound as error:
                return _error(visit, 404, "There is no such page", str(error))
            except Unrecorded:
                why = "The audit log does not take what would have to be recorded, so nothing was shown or done."
                return _error(visit, 503, "Not recorded, so not done", why)
            except DeskUnusable as error:
                return PlainTextResponse(f"{error}\n", 503)
            except (NoLog, Unreadable) as error:
                return _error(visit, 503, "The log cannot be read", str(error))

        return opened

    async def _answer(self, place: Place, visit: Visit, body: bytes | None) -> Response:
        if place.signed_in:
            if visit.account is None:
                return _to_sign_in(visit, place.method)
            if visit.account.must_change and place.path not in ("/password", "/sign-out"):
                return visit.go("/password")
            if place.deed is not None and not visit.person.may(place.deed):
                return forbidden(visit, visit.person)
        if place.method == "POST":
            visit.take_form(body)
        return await place.endpoint(visit)

    def _session(self, request: Request, *, is_use: bool = True) -> tuple[Session | None, Account | None]:
        token = request.cookies.get(cookie_name(secure=self._ground.secure), "")
        found = self._ground.desk.session(token, self._ground.now(), is_use=is_use) if token else None
        return found if found is not None else (None, None)

    async def _static_file(self, request: Request) -> Response:
        name = request.path_params["name"]
        content = self._static.get(name)
        if content is None:
            return PlainTextResponse("there is no such file\n", 404)
        kind = TYPES[name.rpartition(".")[2]]
        return Response(content, media_type=kind, headers={"cache-control": "max-age=300"})

    async def _missing(self, request: Request, error: Exception) -> Response:
        session, account = self._session(request)
        visit = Visit(request, self._ground, self._templates, session, account, self._looks)
        return _error(visit, getattr(error, "status_code", 404), "There is no such page", "")


def forbidden(visit: Visit, person: Person) -> Response:
    """What somebody is told who may not."""
    return _error(visit, 403, "Not for this role", f"You have signed in as {person.name}, {person.duty}.")


def _to_sign_in(visit: Visit, method: str) -> Response:
    if method != "GET":
        return _error(visit, 403, "Sign in first", "Your session has ended; nothing was done.")
    return visit.go("/sign-in")


def _error(visit: Visit, status: int, title: str, why: str) -> Response:
    return visit.page("error.html", status, title=title, why=why)
