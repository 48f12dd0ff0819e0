"""Templates, and how values look in them. Everything is escaped; what could deceive a reader is marked (marks)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mitmsec.audit.console import marks

HERE = Path(__file__).parent
TEMPLATES, STATIC = HERE / "templates", HERE / "static"
MARK_TITLE = "a character that would not be seen, or would change how this reads"


def shown(value: object, limit: int = marks.SHOWN_CHARACTERS) -> Markup:
    """Words of others, in full up to `limit` characters."""
    mark = Markup('<span class="mark" title="{}">{}</span>')
    parts = marks.parts(value, limit)
    whole = Markup("").join(mark.format(MARK_TITLE, one.text) if one.is_mark else one.text for one in parts)
    return Markup("<bdi>{}</bdi>").format(whole)


def brief(value: object) -> Markup:
    """The same for a cell of a table: the rest is in its title."""
    text = "" if value is None else str(value)
    if len(text) <= 80:
        return shown(text)
    return Markup('<span title="{}">{}</span>').format(marks.plain(text, 1000), shown(text, 80))


def moment(value: object) -> Markup:
    """An instant, in UTC; with JavaScript the browser's own time, and UTC in its title."""
    try:
        at = datetime.fromisoformat(str(value)).astimezone(UTC)
    except ValueError:
        return shown(value)
    said = at.strftime("%Y-%m-%d %H:%M:%S")
    return Markup('<time datetime="{}" title="{} UTC">{}<span class="utc">Z</span></time>').format(
        at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), said, said
    )


def age(value: object, now: datetime) -> str:
    """How long ago, in one unit."""
    try:
        seconds = int((now - datetime.fromisoformat(str(value))).total_seconds())
    except ValueError:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return "now"


def size(value: object) -> str:
    """Bytes, for people."""
    if not isinstance(value, int):
        return "–"
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError


def word(value: object) -> str:
    """A word of ours, as people read it."""
    return str(value or "").replace("_", " ")


def environment() -> Environment:
    """All templates read, so that nothing need be read later."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, auto_reload=False
    )
    made.trim_blocks = made.lstrip_blocks = True
    filters: dict[str, Any] = {
        "shown": shown, "brief": brief, "moment": moment, "age": age, "size": size, "word": word, "plain": marks.plain,
    }  # fmt: skip
    made.filters.update(filters)
    for name in made.list_templates(extensions=["html"]):
        made.get_template(name)
    return made
