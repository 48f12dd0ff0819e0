"""Coming in and going: sign-in, sign-out, one's own password."""

from __future__ import annotations

import time

from starlette.responses import Response

from mitmsec.audit.console import passwords
from mitmsec.audit.console.cookies import with_cookie
from mitmsec.audit.console.throttle import Throttle
from mitmsec.audit.console.visits import Visit

TRIES_OF_ADDRESS = 40
NO = "That is not the name and password of an account here."


class Entry:
    """Counts failures: of an account, and of an address, which on one machine all of its users share."""

    def __init__(self) -> None:
        self.by_name, self.by_address = Throttle(), Throttle(TRIES_OF_ADDRESS)

    async def front(self, visit: Visit) -> Response:
        return visit.go("/overview" if visit.account is not None else "/sign-in")

    async def sign_in(self, visit: Visit) -> Response:
        if visit.account is not None:
            return visit.go("/overview")
        return visit.page("sign_in.html", why="")

    async def signed_in(self, visit: Visit) -> Response:
        name, password = visit.form.get("name", "")[:64], visit.form.get("password", "")[: passwords.MOST_CHARACTERS]
        tries, now_s = ((self.by_name, name), (self.by_address, visit.address)), time.monotonic()
        if wait_s := max(throttle.waits_s(key, now_s) for throttle, key in tries):
            why = f"There were too many tries. The next one is looked at in {wait_s:.0f} s."
            return visit.page("sign_in.html", 429, {"retry-after": f"{wait_s:.0f}"}, why=why)
        for throttle, key in tries:  # before it is looked at: tries side by side count as well
            throttle.failed(key, now_s)
        desk = visit.ground.desk
        account = desk.account(name)
        kept = account.hash if account is not None else None
        if not await visit.ground.worked(lambda: passwords.is_it(kept, password)):
            await visit.record("sign_in_refused", name if account is not None else "unknown", f"from {visit.address}")
            return visit.page("sign_in.html", 403, why=NO)
        for throttle, key in tries:
            throttle.succeeded(key)
        await visit.record("signed_in", name, f"from {visit.address}")
        desk.forget_sessions(visit.now)
        token = desk.begin_session(name, visit.address, visit.now)
        return with_cookie(visit.go("/overview"), token, secure=visit.ground.secure)

    async def signed_out(self, visit: Visit) -> Response:
        assert visit.session is not None
        visit.ground.desk.end_session(visit.session.token)
        await visit.record("signed_out", visit.person.name)
        return with_cookie(visit.go("/sign-in"), "", secure=visit.ground.secure)

    async def password(self, visit: Visit) -> Response:
        return visit.page("password.html", why="", least=passwords.LEAST_CHARACTERS)

    async def password_changed(self, visit: Visit) -> Response:
        """Every session of the account ends; this one goes on as a new one."""
        assert visit.account is not None
        old, new = (visit.form.get(name, "") for name in ("old", "new"))
        name, kept = visit.account.name, visit.account.hash
        why = passwords.flaw(new, name)
        if new != visit.form.get("again"):
            why = "the two are not the same"
        elif old == new:
            why = "that is the old one"
        elif not why and self.by_name.waits_s(name, time.monotonic()):
            why = "there were too many tries; wait a while"
        elif not why and not await visit.ground.worked(lambda: passwords.is_it(kept, old)):
            self.by_name.failed(name, time.monotonic())
            why = "the old password is not this"
        if why:
            return visit.page("password.html", 400, why=why, least=passwords.LEAST_CHARACTERS)
        hashed = await visit.ground.worked(lambda: passwords.hashed(new))
        await visit.record("password_changed", name)
        visit.ground.desk.change_password(name, hashed, must_change=False)
        token = visit.ground.desk.begin_session(name, visit.address, visit.now)
        return with_cookie(visit.go("/overview?said=password"), token, secure=visit.ground.secure)
