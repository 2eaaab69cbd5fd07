"""The frame of a page: one file, nothing fetched, nothing run, light or dark as the reader has it, fit to print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vlmdata.pages.html import Child, Html, join, tag

__all__ = ["page_pieces", "section", "table"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5b6474; --line: #d9dde5; --paper: #fff; --panel: #f6f7f9;
  --bar: #3a6fb0; --kept: #2f8f5b; --lost: #c8743a; --user: #e8f0fb; --assistant: #e6f5ec; --system: #f3edf8 }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e4e7ee; --soft: #9aa3b5; --line: #363c49;
  --paper: #14171d; --panel: #1c2028; --bar: #6c9fde; --kept: #55b583; --lost: #de9560; --user: #1d2b40;
  --assistant: #1a3226; --system: #2c2437 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  padding: 2rem 1.5rem; max-width: 76rem }
h1 { font-size: 1.6rem; margin: 0 0 .3rem } h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; overflow-wrap: anywhere } p { margin: .3rem 0 .8rem }
nav { margin: .6rem 0 0; font-size: .9rem; display: flex; flex-wrap: wrap; gap: 0 1rem }
nav a { color: var(--bar); white-space: nowrap }
.soft, figcaption { color: var(--soft); font-size: .82rem; overflow-wrap: anywhere }
table { border-collapse: collapse; margin: .6rem 0; font-size: .9rem } .wide { overflow-x: auto }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  max-width: 44rem; overflow-wrap: break-word } th { font-weight: 600 }
td img { min-width: 1.2rem; image-rendering: pixelated }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
svg { display: block; max-width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: var(--ink) }
svg .soft { fill: var(--soft) } svg .axis { stroke: var(--line) } .bar { fill: var(--bar) } .kept { fill: var(--kept) }
.lost { fill: var(--lost) } .band { opacity: .28 } .read { fill: var(--soft) }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1.2rem 2rem }
.charts figure { margin: 0; max-width: none } .charts h3 { margin: 0 0 .2rem }
article { border: 1px solid var(--line); border-radius: 10px; background: var(--panel); padding: .9rem 1rem;
  margin: .9rem 0; break-inside: avoid } article h3 { margin: 0 0 .6rem; font-size: .9rem }
.groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(27rem, 1fr)); gap: 1rem; margin: .6rem 0 }
.groups article { margin: 0 }
.rows { columns: 2 30rem; column-gap: 1.2rem } .rows article { margin: 0 0 1.2rem }
.turn { border-radius: 12px; padding: .5rem .8rem; margin: .5rem 0; width: fit-content; max-width: 88%;
  print-color-adjust: exact; -webkit-print-color-adjust: exact } .turn.user { background: var(--user) }
.turn.assistant { background: var(--assistant); margin-left: auto } .turn.system { background: var(--system);
  max-width: none }
.role { font-size: .7rem; text-transform: uppercase; letter-spacing: .06em; color: var(--soft) }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; margin: 0 }
figure { margin: .3rem .8rem .3rem 0; display: inline-block; vertical-align: top; max-width: 20rem }
figure img { max-width: 100%; max-height: 18rem; border-radius: 6px; display: block; background: #8882 }
.strip { display: flex; flex-wrap: wrap; gap: 1rem } .strip figure { width: 11rem; margin: 0 }
.strip figure img { max-height: 11rem } .strip b, .strip .text { display: block } .strip .text { color: var(--ink) }
.strip .text + br { display: none } .strip .chosen { border-right: 2px solid var(--kept); padding-right: 1rem;
  width: 12.1rem } .share { display: inline-block; height: .6em; background: var(--bar); margin-left: .5rem;
  print-color-adjust: exact; -webkit-print-color-adjust: exact }
@media (max-width: 40rem) { .groups { grid-template-columns: 1fr } td:last-child { min-width: 12rem } }
@media print { body { max-width: none; padding: 0; font-size: 12px } nav { display: none }
  h2, h3, .charts figure, tr { break-inside: avoid } h2, h3 { break-after: avoid } .rows { columns: 2 }
  figure img { max-height: 11rem } }
"""


def page_pieces(title: str, body: Iterable[Html]) -> Iterator[str]:
    """Yield a page piece by piece, so that it never stands in memory as a whole."""
    # nothing of the page may run or be fetched, whatever the data holds
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    yield '<!doctype html>\n<html lang="en"><head>'
    yield tag("meta", charset="utf-8")
    yield Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">')
    yield tag("meta", name="viewport", content="width=device-width, initial-scale=1")
    yield join(tag("title", title), tag("style", Html(_STYLE)), Html("</head><body>\n"))
    for piece in body:
        yield piece + "\n"
    yield "</body></html>\n"


def section(name: str, title: str, *children: Child) -> Html:
    """Return a part of the page with a heading that links can point at."""
    return tag("section", tag("h2", title, id=name), *children)


def table(headings: Iterable[str], rows: Iterable[Iterable[Child]]) -> Html:
    """Return a table; whole numbers stand to the right, with thousands apart."""
    head = tag("tr", [tag("th", heading) for heading in headings])
    return tag("div", tag("table", head, [tag("tr", map(_cell, row)) for row in rows]), class_="wide")


def _cell(value: Child) -> Html:
    return tag("td", f"{value:,}", class_="number") if isinstance(value, int) else tag("td", value)
