"""An export bundle: events, the checkpoint that stands for them, and a proof for each (mitmsec.audit.bundle)."""

from __future__ import annotations

import asyncio
from datetime import datetime
from functools import partial
from typing import Any

from starlette.responses import Response

from mitmsec.audit.bundle import EVENTS_LIMIT, KeptOther, TooMany
from mitmsec.audit.bundle_file import written
from mitmsec.audit.bundling import Asked, Bundle, bundled
from mitmsec.audit.console.look_pages import CHOICES
from mitmsec.audit.console.visits import Visit
from mitmsec.audit.overview import page

CHECKPOINT_TRIES, CHECKPOINT_PAUSE_S = 25, 0.2
NOTE_LIMIT_CHARACTERS = 4096


async def export(visit: Visit) -> Response:
    """What is to be in it."""
    return await _form(visit)


async def _form(visit: Visit, status: int = 200, why: str = "") -> Response:
    asked = visit.query
    wanted, among = asked.filter(visit.now), asked.among()
    found = await visit.ground.asked(lambda review: page(review, wanted, None, EVENTS_LIMIT, among))
    values: dict[str, Any] = {"asked": asked, "count": len(found.events), "is_more": found.next_before is not None}
    formats = tuple(visit.ground.formats)
    return visit.page("export.html", status, **values, formats=formats, limit=EVENTS_LIMIT, why=why, choices=CHOICES)


async def exported(visit: Visit) -> Response:
    """The bundle. That it is made, of what and by whom, is on record before."""
    asked = visit.query
    said = asked.address("").removeprefix("?") or "everything"
    formats = tuple(name for name in visit.ground.formats if f"format_{name}" in visit.form)
    await visit.record("exported", said, f"formats: {', '.join(('jsonl', *formats))}")
    order = Asked(
        wanted=asked.filter(visit.now),
        among=asked.among(),
        kept=visit.form.get("checkpoint", "")[:NOTE_LIMIT_CHARACTERS].replace("\r\n", "\n"),
        said=said,
        by=visit.person.name,
        at=visit.now,
    )
    try:
        files = await _made(visit, order)
    except (KeptOther, TooMany) as error:
        return await _form(visit, 400, str(error))
    if files is None:
        return await _form(visit, 503, "No checkpoint stands for these events yet; try again in a moment.")
    events = files.events
    for name in formats:
        one = visit.ground.formats[name]
        files.further[one.file] = await visit.ground.worked(partial(one.written, events))
    content = await visit.ground.worked(partial(written, files))
    name = f"mitmsec-{_stamp(visit.now)}.zip"
    return Response(
        content, media_type="application/zip", headers={"content-disposition": f'attachment; filename="{name}"'}
    )


async def _made(visit: Visit, order: Asked) -> Bundle | None:
    for _ in range(CHECKPOINT_TRIES):  # a recorder signs about once a second
        made = await visit.ground.asked(partial(bundled, asked=order))
        if made is not None:
            return made
        await asyncio.sleep(CHECKPOINT_PAUSE_S)
    return None


def _stamp(at: datetime) -> str:
    return at.strftime("%Y%m%dT%H%M%SZ")
