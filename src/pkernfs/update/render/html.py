# SPDX-License-Identifier: GPL-2.0-only
"""A report as one page that needs nothing else: the picture, and the figures as tables."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from pkernfs.update.render import svg
from pkernfs.update.render.svg import clean
from pkernfs.update.render.text import fate, seconds
from pkernfs.update.render.view import GUEST_PHASES, ReportView
from pkernfs.words import count, size

_STYLE = """
:root { color-scheme: light dark; --bg: #ffffff; --ink: #1f2328; --soft: #59636e;
  --line: #d1d9e0; --good: #1a7f37; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --bg: #0d1117; --ink: #e6edf3; --soft: #9198a1;
  --line: #30363d; --good: #3fb950; --bad: #f85149; } }
body { background: var(--bg); color: var(--ink); margin: 2rem auto; max-width: 1080px;
  padding: 0 1rem; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; overflow-wrap: anywhere; }
.soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
figure { margin: 1.5rem 0; overflow-x: auto; }
figure svg { box-sizing: border-box; width: 100%; min-width: 720px; height: auto;
  border: 1px solid var(--line); border-radius: 6px; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.1rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th { color: var(--soft); font-weight: 500; }
th:first-child, td:first-child, th.text, td.text { text-align: left; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
td.text { white-space: normal; overflow-wrap: anywhere; min-width: 13rem; }
"""

#: Outcomes of an update that went as it should.
_GOOD = "completed"


def _add(parent: Element, tag: str, text: str = "", kind: str = "") -> Element:
    element = SubElement(parent, tag, {"class": kind} if kind else {})
    element.text = clean(text)
    return element


def _table(
    parent: Element, head: Sequence[str], rows: Sequence[Sequence[str]], *, text_last: bool
) -> None:
    """A table; its first column is text.

    :param text_last: its last one, too.
    """
    table = SubElement(SubElement(parent, "div", {"class": "wide"}), "table")
    top = SubElement(SubElement(table, "thead"), "tr")
    body = SubElement(table, "tbody")
    last = len(head) - 1
    for number, name in enumerate(head):
        _add(top, "th", name, "text" if text_last and number == last else "")
    for row in rows:
        line = SubElement(body, "tr")
        for number, cell in enumerate(row):
            _add(line, "td", cell, "text" if text_last and number == last else "")


def _guests(body: Element, view: ReportView) -> None:
    _add(body, "h2", "Guests")
    head = ["guest", "memory", "state", *(f"{name}, s" for name in GUEST_PHASES), "blackout, s", ""]
    rows = [
        [
            guest.name,
            size(guest.ram_bytes),
            size(guest.state_bytes) if guest.state_bytes is not None else "-",
            *(seconds(guest.seconds(phase)) for phase in GUEST_PHASES),
            seconds(guest.blackout_s),
            fate(guest),
        ]
        for guest in view.guests
    ]
    _table(body, head, rows, text_last=True)


def _phases(body: Element, view: ReportView) -> None:
    _add(body, "h2", "Phases")
    head = ["phase", "begins, s", "ends, s", "takes, s"]
    rows = [
        [span.name, seconds(span.start_s), seconds(span.end_s), seconds(span.seconds)]
        for span in view.phases
    ]
    _table(body, head, rows, text_last=False)


def _devices(body: Element, view: ReportView) -> None:
    _add(body, "h2", "Devices")
    rows = [[device.bdf, device.model, device.text] for device in view.devices + view.cut_off]
    _table(body, ["device", "model", ""], rows, text_last=True)


def _summary(body: Element, view: ReportView) -> None:
    good = view.outcome == _GOOD
    _add(body, "h1", f"Live update {view.update}")
    line = _add(body, "p", "", "good" if good else "bad")
    _add(line, "strong", view.outcome + (f": {view.text}" if view.text else ""))
    _add(body, "p", f"kernel {view.kernels}")
    running = sum(guest.survived for guest in view.guests)
    words = f"{count(len(view.guests), 'guest')}, {running} of them running"
    if not view.guests:
        words = "no guests"
    if view.store is not None:
        words += f"; store: {view.store}"
    _add(body, "p", words)


def render(view: ReportView) -> str:
    """The page."""
    page = Element("html", {"lang": "en"})
    head = SubElement(page, "head")
    SubElement(head, "meta", {"charset": "utf-8"})
    attributes = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    SubElement(head, "meta", attributes)
    _add(head, "title", f"Live update {view.update}: {view.outcome}")
    SubElement(head, "style").text = _STYLE
    body = SubElement(page, "body")
    _summary(body, view)
    SubElement(body, "figure").append(svg.element(view, titled=False))
    if view.guests:
        _guests(body, view)
    if view.devices or view.cut_off:
        _devices(body, view)
    _phases(body, view)
    _add(
        body,
        "p",
        "A guest's blackout lasts from its last instruction to its next. Times are by "
        f"{view.clock}; exact to {view.exact_to_s * 1000:.1f} ms over the whole update.",
        "soft",
    )
    text = ElementTree.tostring(page, encoding="unicode", method="html")
    return f"<!DOCTYPE html>\n{text}\n"
