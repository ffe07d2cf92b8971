# SPDX-License-Identifier: GPL-2.0-only
"""The timeline of an update as a picture: a row each for host, guests and devices, one clock.

A scalable vector graphic that needs nothing else: no script, no font, no other file. All text
goes in through ElementTree, which escapes it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from pkernfs.update.render.axis import Axis, duration, label
from pkernfs.update.render.view import GUEST_PHASES, DeviceView, GuestView, ReportView, Span

WIDTH = 1000.0
_MARGIN = 16.0
_TITLE = 60.0
_AXIS = 32.0
_ROW = 30.0
_BAR = 16.0
_FOOT = 66.0
#: Width of a character of the small font, on average, pixels.
_CHAR = 6.4
_NAMES_MIN, _NAMES_MAX = 90.0, 250.0
#: So that the shortest phase can be seen, pixels.
BAR_MIN = 1.5

#: Phases by class of colour. "kernel" is no bar but a shade over all rows.
CLASSES = {
    "check": "before",
    "load": "before",
    "pause": "pause",
    "save": "save",
    "fingerprint": "save",
    "hand over": "over",
    "init": "after",
    "interpreter": "after",
    "mount": "after",
    "verify": "after",
    "start": "start",
    "load state": "state",
    "run": "on",
}
_LEGEND = (
    ("on", "guest runs"),
    ("dark", "blackout"),
    ("pause", "pause"),
    ("save", "save"),
    ("start", "QEMU starts"),
    ("state", "state loads"),
    ("kernel", "no kernel, then the next one boots"),
    ("before", "host"),
    ("device", "device works on"),
)

STYLE = """
.pk { --bg: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --kernel: #e4e8ec;
  --before: #9aa5b1; --over: #57606a; --after: #9aa5b1; --on: #2da44e; --dark: #ffd7d5;
  --edge: #cf222e; --pause: #bf8700; --save: #8250df; --start: #0969da; --state: #0f7b82;
  --device: #2da44e; }
@media (prefers-color-scheme: dark) {
  .pk { --bg: #0d1117; --ink: #e6edf3; --soft: #9198a1; --line: #30363d; --kernel: #21262d;
    --before: #6e7681; --over: #b1bac4; --after: #6e7681; --on: #3fb950; --dark: #4b1a1c;
    --edge: #f85149; --pause: #d29922; --save: #a371f7; --start: #4493f8; --state: #39a5ad;
    --device: #3fb950; } }
.pk text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
  font-size: 11.5px; fill: var(--ink); }
.pk .title { font-size: 16px; font-weight: 600; }
.pk .soft { fill: var(--soft); }
.pk .end { text-anchor: end; }
.pk .mid { text-anchor: middle; }
.pk .bad { fill: var(--edge); font-weight: 600; }
.pk .page { fill: var(--bg); }
.pk .rule { stroke: var(--line); stroke-width: 1; }
.pk .cut { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 3; }
.pk .kernel { fill: var(--kernel); }
.pk .before { fill: var(--before); } .pk .over { fill: var(--over); }
.pk .after { fill: var(--after); } .pk .on { fill: var(--on); }
.pk .dark { fill: var(--dark); fill-opacity: .7; stroke: var(--edge); stroke-width: 1; }
.pk .lost { fill: var(--dark); fill-opacity: .7; stroke: var(--edge); stroke-width: 1;
  stroke-dasharray: 4 3; }
.pk .pause { fill: var(--pause); } .pk .save { fill: var(--save); }
.pk .start { fill: var(--start); } .pk .state { fill: var(--state); }
.pk .device { fill: var(--device); } .pk .gone { fill: var(--edge); }
"""

#: What XML can't hold (XML 1.0, section 2.2), and surrogates, which no encoding can.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clean(text: str) -> str:
    """Text without characters that can't be in a document."""
    return _FORBIDDEN.sub("\ufffd", text)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _text(parent: Element, kind: str, x: float, y: float, text: str, title: str = "") -> None:
    element = SubElement(parent, "text", {"class": kind, "x": _number(x), "y": _number(y)})
    element.text = clean(text)
    if title and title != text:
        SubElement(element, "title").text = clean(title)


def _line(parent: Element, kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
    numbers = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    SubElement(parent, "line", {"class": kind, **{name: _number(v) for name, v in numbers.items()}})


def fit(text: str, width: float) -> str:
    """Text cut to a width in pixels, its middle left out."""
    room = max(3, int(width / _CHAR))
    if len(text) <= room:
        return text
    head = (room - 1) * 2 // 3
    return f"{text[:head]}\u2026{text[len(text) - (room - 1 - head) :]}"


class _Picture:
    """One picture under construction."""

    def __init__(self, view: ReportView, titled: bool) -> None:
        self._view = view
        self._titled = titled
        self._top = _AXIS + (_TITLE if titled else 0.0)
        names = ["host", *(guest.name for guest in view.guests)]
        names += [device.bdf for device in view.devices + view.cut_off]
        longest = max(len(name) for name in names) * _CHAR + 14
        left = _MARGIN + min(_NAMES_MAX, max(_NAMES_MIN, longest))
        self._names_width = left - _MARGIN - 10
        self._axis = Axis(_intervals(view), left, WIDTH - _MARGIN - left)
        self._end_s = self._axis.end_s
        self._rows = len(names)
        self._bottom = self._top + self._rows * _ROW
        height = self._bottom + _FOOT
        self.svg = Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "class": "pk",
                "viewBox": f"0 0 {_number(WIDTH)} {_number(height)}",
                "role": "img",
                "aria-label": clean(f"timeline of update {view.update}: {view.outcome}"),
            },
        )
        SubElement(self.svg, "style").text = STYLE
        self._drawn: set[str] = set()
        self._rect("page", 0, 0, WIDTH, height)

    def _rect(
        self, kind: str, x: float, y: float, width: float, height: float, title: str = ""
    ) -> None:
        self._drawn.add(kind)
        numbers = {"x": x, "y": y, "width": width, "height": height}
        values = {name: _number(value) for name, value in numbers.items()}
        rect = SubElement(self.svg, "rect", {"class": kind, **values})
        if title:
            SubElement(rect, "title").text = clean(title)

    def draw(self) -> None:
        """All of it."""
        if self._titled:
            self._head()
        self._time()
        self._row(0, "host", "host")
        for span in self._view.phases:
            if span.name == "kernel":
                self._kernel_label(span)
            elif span.name not in GUEST_PHASES:
                self._bar(0, span, CLASSES.get(span.name, "after"))
        for row, guest in enumerate(self._view.guests, 1):
            self._guest(row, guest)
        first = 1 + len(self._view.guests)
        for row, device in enumerate(self._view.devices + self._view.cut_off, first):
            self._device(row, device, row - first >= len(self._view.devices))
        self._legend()

    def _head(self) -> None:
        view = self._view
        _text(self.svg, "title", _MARGIN, 28, f"Live update {view.update}: {view.outcome}")
        words = f"kernel {view.kernels}" + (f"; {view.text}" if view.text else "")
        _text(self.svg, "soft", _MARGIN, 48, fit(words, WIDTH - 2 * _MARGIN), words)

    def _time(self) -> None:
        """Axis, and the time in which no kernel, or a new one, runs."""
        axis, top = self._axis, self._top - 8
        for span in self._view.phases:
            if span.name == "kernel" and span.seconds > 0:
                left, right = axis.x(span.start_s), axis.x(span.end_s)
                title = f"kernel: {span.seconds:.3f} s"
                self._rect("kernel", left, top, right - left, self._bottom - top, title)
        ticks = axis.ticks()
        step = min((b - a for a, b in itertools.pairwise(ticks)), default=1.0)
        for tick in ticks:
            x = axis.x(tick)
            _line(self.svg, "rule", x, top, x, self._bottom)
            if x < WIDTH - _MARGIN - 16:
                _text(self.svg, "soft mid", x, top - 6, label(tick, step))
        for cut in axis.cuts:
            _line(self.svg, "cut", cut.x + 4, top, cut.x + 4, self._bottom)
            _line(self.svg, "cut", cut.x + 30, top, cut.x + 30, self._bottom)
            middle = cut.x + 17
            _text(
                self.svg, "soft mid", middle, self._bottom + 12, duration(cut.end_s - cut.start_s)
            )

    def _kernel_label(self, span: Span) -> None:
        left, right = self._axis.x(span.start_s), self._axis.x(span.end_s)
        for words in (f"{self._view.kernel_after} boots, {span.seconds:.3f} s", "kernel"):
            if right - left > len(words) * _CHAR + 6:
                _text(self.svg, "soft mid", (left + right) / 2, self._y(0) + 12, words)
                return

    def _row(self, row: int, name: str, title: str) -> None:
        y = self._top + row * _ROW
        shown = fit(name, self._names_width)
        _text(self.svg, "name", _MARGIN, y + _ROW / 2 + 4, shown, title)
        _line(self.svg, "rule", _MARGIN, y + _ROW, WIDTH - _MARGIN, y + _ROW)

    def _y(self, row: int, height: float = _BAR) -> float:
        return self._top + row * _ROW + (_ROW - height) / 2

    def _bar(self, row: int, span: Span, kind: str, height: float = _BAR) -> None:
        left, right = self._axis.x(span.start_s), self._axis.x(span.end_s)
        width = max(BAR_MIN, right - left)
        left = min(left, self._axis.right - width)
        title = f"{span.name}: {span.seconds:.3f} s"
        self._rect(kind, left, self._y(row, height), width, height, title)
        if width > len(span.name) * _CHAR + 6 and kind in ("before", "after"):
            _text(self.svg, "mid", left + width / 2, self._y(row) + 12, span.name)

    def _runs(self, row: int, kind: str, start_s: float, end_s: float, title: str) -> None:
        left, right = self._axis.x(start_s), self._axis.x(end_s)
        if right > left:
            self._rect(kind, left, self._y(row, 6), right - left, 6, title)

    def _guest(self, row: int, guest: GuestView) -> None:
        self._row(row, guest.name, guest.name)
        end_s, stopped, running = self._end_s, guest.stopped_s, guest.running_s
        if stopped is None:
            if guest.survived:
                self._runs(row, "on", 0, end_s, f"{guest.name} was not paused by this update")
        else:
            self._runs(row, "on", 0, stopped, "runs")
            self._blackout(row, guest, stopped, running if running is not None else end_s)
        if running is not None:
            self._runs(row, "on", running, end_s, "runs")
        for span in guest.phases:
            kind = CLASSES.get(span.name, "after")
            if kind != "on":
                self._bar(row, span, kind, 10)
        self._label(row, guest)

    def _blackout(self, row: int, guest: GuestView, start_s: float, end_s: float) -> None:
        left, right = self._axis.x(start_s), self._axis.x(end_s)
        width = max(BAR_MIN, right - left)
        left = min(left, self._axis.right - width)
        title = f"{guest.name}: blackout {end_s - start_s:.3f} s"
        kind = "dark"
        if guest.running_s is None:
            kind, title = "lost", f"{guest.name}: {guest.error or 'does not run'}"
        self._rect(kind, left, self._y(row, 22), width, 22, title)

    def _label(self, row: int, guest: GuestView) -> None:
        """The blackout in words, where the guest has no bar."""
        words, kind = "", "value"
        if not guest.survived:
            words, kind = "does not run", "bad"
        elif guest.blackout_s is not None:
            words = f"{guest.blackout_s:.3f} s"
        if not words:
            return
        needed = len(words) * _CHAR + 12
        for left, right in self._free(guest):
            if right - left >= needed:
                middle, y = (left + right) / 2, self._top + row * _ROW + _ROW / 2 + 4
                _text(self.svg, f"{kind} mid", middle, y, words, guest.error)
                return

    def _free(self, guest: GuestView) -> list[tuple[float, float]]:
        """Stretches of the guest's row without a bar, those within the blackout first."""
        axis = self._axis
        start = guest.stopped_s if guest.stopped_s is not None else 0.0
        end = guest.running_s if guest.running_s is not None else self._end_s
        bars = sorted(
            (axis.x(span.start_s), axis.x(span.end_s) + BAR_MIN)
            for span in guest.phases
            if span.end_s >= start and span.start_s <= end
        )
        edges = [(0.0, axis.x(start)), *bars, (axis.x(end), axis.right)]
        reached, gaps = edges[0][1], []
        for left, right in edges[1:]:
            gaps.append((reached, left))
            reached = max(reached, right)
        gaps.sort(key=lambda gap: gap[0] - gap[1])
        return [*gaps, (axis.left, axis.x(start)), (axis.x(end), axis.right)]

    def _device(self, row: int, device: DeviceView, cut_off: bool) -> None:
        title = f"{device.bdf} {device.model}: {device.text}"
        self._row(row, device.bdf, title)
        end_s = self._end_s
        kernel = next((span for span in self._view.phases if span.name == "kernel"), None)
        if (cut_off or not device.good) and kernel is not None:
            end_s = kernel.start_s
        y, right = self._y(row) + 12, self._axis.x(end_s)
        self._rect("device", self._axis.left, y, right - self._axis.left, 6, title)
        if end_s < self._end_s:
            self._rect("gone", right, y - 4, 2, 14, title)
        words = fit(f"{device.model}: {device.text}", self._axis.right - self._axis.left - 12)
        _text(self.svg, "soft", self._axis.left + 4, y - 4, words, title)

    def _legend(self) -> None:
        x, y = _MARGIN, self._bottom + 24
        for kind, words in _LEGEND:
            if kind not in self._drawn:
                continue
            self._rect(kind, x, y, 12, 10)
            _text(self.svg, "soft", x + 17, y + 9, words)
            x += 17 + len(words) * _CHAR + 12
        words = f"times exact to {self._view.exact_to_s * 1000:.1f} ms over the whole update"
        _text(self.svg, "soft", _MARGIN, y + 28, words)


def _intervals(view: ReportView) -> Iterable[tuple[float, float]]:
    spans = [*view.phases, *(span for guest in view.guests for span in guest.phases)]
    for span in spans:
        yield max(0.0, span.start_s), max(0.0, span.end_s)
    for guest in view.guests:
        for moment in (guest.stopped_s, guest.running_s):
            if moment is not None:
                yield max(0.0, moment), max(0.0, moment)


def element(view: ReportView, *, titled: bool) -> Element:
    """The picture, to be put into a page.

    :param titled: does it say itself what it shows?
    """
    picture = _Picture(view, titled)
    picture.draw()
    return picture.svg


def render(view: ReportView) -> str:
    """The picture as a file of its own."""
    text = ElementTree.tostring(element(view, titled=True), encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'
