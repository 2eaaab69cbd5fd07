"""What HTML pages are made of, for the reports of both programs: one file, nothing fetched, nothing run.

    pictures → frame → html

html: elements that escape by default; frame: the page with its style, sections and tables; pictures: stored images as
data URIs, the only module here that loads Pillow.
"""

from __future__ import annotations

from vlmdata.pages.frame import page_pieces, section, table
from vlmdata.pages.html import Child, Html, count_of, cut, escape_text, join, tag

__all__ = ["Child", "Html", "count_of", "cut", "escape_text", "join", "page_pieces", "section", "table", "tag"]
