"""The shares of direct as horizontal bars on a logarithmic scale, in SVG written by hand. Pure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from html import escape

from benchmarks.figures import Metric, Row, ratio

_PANELS = (
    (Metric.CONNECTIONS, "new TLS connections/s"),
    (Metric.REQUESTS, "keep-alive requests/s"),
    (Metric.H2_REQUESTS, "HTTP/2 requests/s"),
    (Metric.BULK, "bulk MB/s"),
)
_LEFT, _WIDTH, _BAR, _GAP, _HEAD = 170, 520, 16, 6, 34
_LEAST = 0.002
_CAPTION_LETTERS, _CAPTION_LINE = 128, 15
_FONT = 'font-family="system-ui, sans-serif" font-size="12"'
_OURS, _PEER, _DIRECT, _INK, _GRID = "#1f6feb", "#8c959f", "#57606a", "#24292f", "#d0d7de"
_TICKS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def svg(rows: Sequence[Row], caption: str) -> str:
    """A panel a metric, a bar a variant; variants without the figure say so."""
    direct = next((row for row in rows if row.variant == "direct"), None)
    panel_height = _HEAD + len(rows) * (_BAR + _GAP) + 14
    caption_lines = textwrap.wrap(caption, _CAPTION_LETTERS)
    drawn = panel_height * len(_PANELS) + 20
    height = drawn + len(caption_lines) * _CAPTION_LINE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 80} {height}" {_FONT} fill="{_INK}">',
        f'<rect width="100%" height="100%" fill="#ffffff"/><title>{escape(caption)}</title>',
    ]
    for number, (metric, title) in enumerate(_PANELS):
        parts += _panel(rows, direct, metric, title, number * panel_height)
    for number, line in enumerate(caption_lines):
        parts.append(f'<text x="10" y="{drawn + number * _CAPTION_LINE}" font-size="11">{escape(line)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(rows: Sequence[Row], direct: Row | None, metric: Metric, title: str, top: int) -> list[str]:
    bottom = top + _HEAD + len(rows) * (_BAR + _GAP)
    parts = [f'<text x="10" y="{top + 20}" font-weight="600">{escape(title)}, share of direct, logarithmic</text>']
    for tick in _TICKS:
        x = _LEFT + _length(tick)
        parts.append(f'<path d="M{x:.1f} {top + _HEAD - 4}V{bottom}" stroke="{_GRID}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 10}" font-size="9" text-anchor="middle">{tick:g}</text>')
    for line, row in enumerate(rows):
        parts += _bar(row, ratio(row, direct, metric), top + _HEAD + line * (_BAR + _GAP))
    return parts


def _bar(row: Row, share: float | None, y: int) -> list[str]:
    name = f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(row.variant)}</text>'
    if share is None:
        return [name, f'<text x="{_LEFT + 4}" y="{y + 12}" font-size="10">not measured</text>']
    length = _length(share)
    colour = _OURS if row.variant.startswith("mitmsec") else _DIRECT if row.variant == "direct" else _PEER
    return [
        name,
        f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_BAR}" fill="{colour}"/>',
        f'<text x="{_LEFT + length + 5:.1f}" y="{y + 12}" font-size="10">{share:.2g}</text>',
    ]


def _length(share: float) -> float:
    """Logarithmic from `_LEAST` to 1, a little room above."""
    span = math.log(max(share, _LEAST) / _LEAST) / math.log(1 / _LEAST)
    return min(span, 1.08) * _WIDTH
