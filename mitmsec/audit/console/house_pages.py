"""Pages about the log and the console themselves: health, the public notice, saved views, administration."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

from msgspec.structs import replace
from starlette.responses import Response

from mitmsec.audit.checkpoint import Untrue, parsed
from mitmsec.audit.console import passwords
from mitmsec.audit.console.duty import Duty, is_name
from mitmsec.audit.console.ground import Verification
from mitmsec.audit.console.visits import BadForm, Visit
from mitmsec.audit.proving import SignedBy
from mitmsec.audit.review import Review
from mitmsec.audit.verifying import Broken, Other, Verified

VIEWED = ("/overview", "/events", "/queue")
ADDRESS_LIMIT_CHARACTERS, TITLE_LIMIT_CHARACTERS = 2000, 80


async def notice(visit: Visit) -> Response:
    """For whoever uses this machine."""
    return visit.page("notice.html", notice=visit.ground.notice)


# -- health ------------------------------------------------------------------------------------------------------------
async def health(visit: Visit) -> Response:
    size, signers, note = await visit.ground.asked(_health)
    try:
        said = parsed(note.partition("\n\n")[0] + "\n") if note else None
    except Untrue:
        said = None
    verification = visit.ground.verification
    return visit.page("health.html", size=size, signers=signers, note=note, checkpoint=said, verification=verification)


def _health(review: Review) -> tuple[int, list[tuple[int, str]], str | None]:
    note = review.proofs.note()
    return review.size(), [(size, str(key)) for size, key in review.proofs.signers()], None if note is None else note[0]


async def verify(visit: Visit) -> Response:
    """Begin, unless somebody has: every event is hashed again."""
    ground = visit.ground
    if ground.verification is None or not ground.verification.is_going_on:
        await visit.record("verification_begun", "log")
        at = visit.now.isoformat(timespec="seconds")
        ground.verification = Verification(at=at, by=visit.person.name)
        ground.keep(asyncio.create_task(_verified(visit)))
    return visit.go("/health")


async def _verified(visit: Visit) -> None:
    ground, begun = visit.ground, visit.ground.verification
    assert begun is not None
    progress = {"done": 0, "total": 0}

    def work(review: Review) -> Verified | Broken | Other:
        progress["total"] = review.size()
        keys = tuple(key for _, key in review.proofs.signers())

        def told(count: int) -> None:
            progress["done"] = count
            ground.verification = replace(begun, **progress)

        return review.proofs.verify(told=told, signed_by=SignedBy(keys, ground.checks))

    result, failed = None, ""
    try:
        result = await ground.asked(work)
    except Exception as error:  # whatever it is, the page must not wait for ever
        failed = str(error) or type(error).__name__
    progress["done"] = result.root.size if isinstance(result, Verified) else progress["done"]
    ground.verification = replace(begun, result=result, failed=failed, **progress)


async def progress(visit: Visit) -> Response:
    """The part of the page that says how far it is."""
    return visit.page("progress.html", verification=visit.ground.verification)


# -- saved views -------------------------------------------------------------------------------------------------------
async def views(visit: Visit) -> Response:
    saved = visit.ground.desk.views(visit.person.name)
    return visit.page("views.html", saved=saved, address=_viewed(visit.asked("address")))


async def views_changed(visit: Visit) -> Response:
    name, desk = visit.person.name, visit.ground.desk
    if number := visit.form.get("remove", ""):
        desk.remove_view(name, int(number) if number.isdecimal() and len(number) < 10 else 0)
        return visit.go("/views")
    address, title = _viewed(visit.form.get("address", "")), visit.form.get("title", "").strip()
    if not address or not title:
        raise BadForm("a view has a title, and is the address of a page with filters")
    if not desk.save_view(name, title[:TITLE_LIMIT_CHARACTERS], address):
        raise BadForm("you have saved as many views as may be; remove one first")
    return visit.go("/views?said=saved")


def _viewed(address: str) -> str:
    """An address of ours that shows a list; else nothing."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    is_ours = (
        not parts.scheme and not parts.netloc and parts.path in VIEWED and len(address) <= ADDRESS_LIMIT_CHARACTERS
    )
    return f"{parts.path}?{parts.query}" if is_ours and address.isprintable() else ""


# -- administration ----------------------------------------------------------------------------------------------------
async def administration(visit: Visit) -> Response:
    return _administration(visit)


def _administration(visit: Visit, status: int = 200, why: str = "", once: tuple[str, str] | None = None) -> Response:
    """`once`: an account and its one-time password, which is shown now and never again."""
    desk = visit.ground.desk
    accounts, sessions = desk.accounts(), desk.sessions()
    own = visit.session.token if visit.session is not None else ""
    values: dict[str, Any] = {"accounts": accounts, "sessions": sessions, "duties": tuple(Duty), "own": own}
    return visit.page("administration.html", status, **values, why=why, once=once)


async def administered(visit: Visit) -> Response:
    """Each change is on record before it is made. Nobody changes an account of their own."""
    order, name = visit.form.get("order", ""), visit.form.get("name", "")
    if order != "end_session" and not (name and is_name(name)):
        return _administration(visit, 400, "A name has letters, digits, dots, dashes, and 64 characters at most.")
    if name == visit.person.name and order != "end_session":
        return _administration(visit, 403, "What becomes of your own account is for another administrator.")
    match order:
        case "add" | "password":
            return await _with_new_password(visit, order, name)
        case "role":
            duty = _duty(visit)
            await visit.record("role_changed", name, duty.value)
            visit.ground.desk.change_duty(name, duty)
        case "remove":
            await visit.record("account_removed", name)
            visit.ground.desk.remove_account(name)
        case "end_session":
            await visit.record("session_ended", name or "session")
            visit.ground.desk.end_session(visit.form.get("session", ""))
        case _:
            raise BadForm("that is nothing that can be done")
    return visit.go("/administration?said=done")


async def _with_new_password(visit: Visit, order: str, name: str) -> Response:
    desk = visit.ground.desk
    if (desk.account(name) is None) != (order == "add"):
        return _administration(visit, 409, "There is an account of that name." if order == "add" else "There is none.")
    duty = _duty(visit) if order == "add" else None
    password = passwords.one_time()
    hashed = await visit.ground.worked(lambda: passwords.hashed(password))
    if duty is not None:
        await visit.record("account_added", name, duty.value)
        desk.add_account(name, duty, hashed, visit.now)
    else:
        await visit.record("password_reset", name)
        desk.change_password(name, hashed, must_change=True)
    return _administration(visit, once=(name, password))


def _duty(visit: Visit) -> Duty:
    try:
        return Duty(visit.form.get("role", ""))
    except ValueError:
        raise BadForm("choose a role") from None
