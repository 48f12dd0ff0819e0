"""The cookie that a session is known by."""

from __future__ import annotations

from starlette.responses import Response

from mitmsec.audit.console.desk_store import ABSOLUTE


def cookie_name(*, secure: bool) -> str:
    """With TLS a browser takes it from this host alone, and from nobody else on it."""
    return "__Host-mitmsec" if secure else "mitmsec"


def with_cookie(response: Response, token: str, *, secure: bool) -> Response:
    """For this browser alone; empty: it forgets it."""
    response.set_cookie(
        cookie_name(secure=secure),
        token,
        max_age=int(ABSOLUTE.total_seconds()) if token else 0,
        httponly=True,
        samesite="strict",
        secure=secure,
    )
    return response
