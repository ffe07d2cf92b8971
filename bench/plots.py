# SPDX-License-Identifier: GPL-2.0-only
"""Two kinds of pictures, as SVG, with nothing but text: bars in stacks, and lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

#: Told apart also without colours by their order in the legend (palette of Okabe and Ito).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")
_WIDTH = 760
_LABELS = 210
_ROW = 26
_FONT = 'font-family="sans-serif" font-size="13" fill="#333"'


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {_FONT} {more}>{escape(text)}</text>'
    )


def _page(height: float, title: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}"'
        f' width="{_WIDTH}" height="{height:.0f}" role="img">'
    )
    background = f'<rect width="{_WIDTH}" height="{height:.0f}" fill="#fff"/>'
    heading = _text(12, 24, title, more='font-weight="bold"')
    return "\n".join(
        [head, f"<title>{escape(title)}</title>", background, heading, *parts, "</svg>"]
    )


def _legend(names: Sequence[str], y: float) -> list[str]:
    parts = []
    x = 12.0
    for index, name in enumerate(names):
        parts.append(
            f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="12" height="12" fill="{_colour(index)}"/>'
        )
        parts.append(_text(x + 17, y, name))
        x += 34 + 7.4 * len(name)
    return parts


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def step_of(top: float) -> float:
    """The distance of marks on a scale from 0 to ``top``: 1, 2 or 5 times a power of ten."""
    rough = top / 6
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def stacks(title: str, unit: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """A bar for each row, made of its parts; all rows name parts in the same order.

    :param unit: what the numbers are.
    """
    names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
    top = max(sum(parts.values()) for parts in rows.values()) or 1.0
    scale = (_WIDTH - _LABELS - 70) / top
    parts = _legend(names, 50)
    y = 72.0
    bottom = y + _ROW * len(rows)
    mark = step_of(top)
    for number in range(math.floor(top / mark) + 1):
        x = _LABELS + number * mark * scale
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 6}" y2="{bottom}" stroke="#ddd"/>')
        parts.append(_text(x, bottom + 16, f"{number * mark:g}", "middle"))
    parts.append(_text(_WIDTH - 12, bottom + 16, unit, "end"))
    for label, values in rows.items():
        parts.append(_text(_LABELS - 8, y + 14, label, "end"))
        x = float(_LABELS)
        for index, name in enumerate(names):
            width = values.get(name, 0.0) * scale
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_ROW - 8}"'
                f' fill="{_colour(index)}"><title>{escape(f"{name}: {values.get(name, 0):.2f}")}'
                "</title></rect>"
            )
            x += width
        parts.append(_text(x + 6, y + 14, f"{sum(values.values()):.2f}"))
        y += _ROW
    return _page(bottom + 30, title, parts)


def lines(
    title: str,
    unit: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    names: Mapping[float, str],
) -> str:
    """A line for each series over a logarithmic axis.

    :param series: points (x, y) by name.
    :param names: what is written under each x.
    """
    xs = sorted(names)
    low, high = math.log2(xs[0]), math.log2(xs[-1])
    top = max(y for points in series.values() for _, y in points) * 1.1
    left, right, up, down = 60.0, _WIDTH - 40.0, 88.0, 340.0

    def place(x: float, y: float) -> tuple[float, float]:
        share = (math.log2(x) - low) / ((high - low) or 1)
        return left + share * (right - left), down - y / top * (down - up)

    parts = _legend(list(series), 50)
    mark = step_of(top)
    for number in range(math.floor(top / mark) + 1):
        y = place(xs[0], number * mark)[1]
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(left - 8, y + 4, f"{number * mark:g}", "end"))
    for x in xs:
        parts.append(_text(place(x, 0)[0], down + 18, names[x], "middle"))
    parts.append(_text(12, up - 14, unit))
    for index, points in enumerate(series.values()):
        placed = [place(x, y) for x, y in sorted(points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{_colour(index)}" stroke-width="2.5"/>'
        )
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_colour(index)}"/>' for x, y in placed
        ]
    return _page(down + 34, title, parts)
