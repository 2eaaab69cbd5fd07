"""A set that wants to do harm ends in one line for each row, and its texts as text on the page."""

from __future__ import annotations

import html
import http.server
import json
import re
import runpy
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmdata import BuildConfig, build_folder, open_folder
from vlmdata.preview import write_preview
from vlmdata.sources import downloads

HOSTILE = runpy.run_path(str(Path(__file__).with_name("hostile_set.py")))
SCRIPT, MARKUP = HOSTILE["SCRIPT"], HOSTILE["MARKUP"]
PUBLIC = "127.0.0.3"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Redirect(http.server.BaseHTTPRequestHandler):
    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.path)
        self.send_response(302)
        self.send_header("Location", f"http://127.0.0.2:{self.server.server_address[1]}/secret.png")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[str]]]:
    handler = type("Handler", (Redirect,), {"seen": []})
    with http.server.ThreadingHTTPServer(("0.0.0.0", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://{PUBLIC}:{server.server_address[1]}/from", handler.seen
        server.shutdown()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, server: tuple[str, list[str]]) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("hostile")
    # The server's own address counts as a public one here, as no real one can be used; the one it leads to does not.
    refuse = downloads._refuse_private
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads, "_refuse_private", lambda address: None if address == PUBLIC else refuse(address))
        reasons = HOSTILE["write_hostile_set"](folder, server[0], 100 << 20)
        started = time.monotonic()
        values = {"inputs": [str(folder / "set" / "rows.jsonl")], "out": folder / "out", "workers": 0, "dedup": "none"}
        build_folder(BuildConfig.from_values({**values, "max_reject_rate": 1.0, "url_retries": 0}))
        assert time.monotonic() - started < 60
    return folder, reasons


def test_each_row_is_rejected_with_its_reason(built: tuple[Path, list[str]], server: tuple[str, list[str]]) -> None:
    folder, reasons = built
    lines = [json.loads(line) for line in (folder / "out" / "rejected.jsonl").read_text().splitlines()]
    found = {line["row"]: line["reason"] for line in lines}
    assert [found.get(row, "kept") for row in range(len(reasons))] == reasons
    assert all(line["detail"] for line in lines)
    assert server[1] == ["/from"]


def test_scripts_are_kept_as_text(built: tuple[Path, list[str]]) -> None:
    folder, _ = built
    rows = open_folder(folder / "out").split("train")
    assert rows[0]["messages"][0]["content"][1]["text"] == SCRIPT + MARKUP
    assert rows[0]["id"] == SCRIPT
    write_preview(folder / "out", folder / "preview.html", split="train", rows=9, seed=None)
    for page in (folder / "out" / "report.html", folder / "preview.html"):
        text = page.read_text()
        assert html.escape(SCRIPT) in text
        assert html.escape(MARKUP) in text
        assert not re.search(r"<(script|svg onload|img src=x)", text)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_browser_shows_scripts_as_text_and_has_nothing_to_say(built: tuple[Path, list[str]]) -> None:
    folder, _ = built
    shown = subprocess.run(
        [
            str(CHROMIUM),
            *"--headless --no-sandbox --disable-gpu --enable-logging=stderr --v=0 --virtual-time-budget=2000".split(),
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            (folder / "out" / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in shown.stderr
    assert "<title>Report of a vlmdata build</title>" in shown.stdout  # no script has changed it
    assert html.escape(SCRIPT, quote=False) in shown.stdout


@pytest.mark.slow  # reads a line of one gigabyte
def test_a_line_of_a_gigabyte(tmp_path: Path) -> None:
    reasons = HOSTILE["write_hostile_set"](tmp_path)
    values = {"inputs": [str(tmp_path / "set" / "rows.jsonl")], "out": tmp_path / "out", "workers": 1}
    counts = build_folder(BuildConfig.from_values({**values, "max_reject_rate": 1.0})).manifest.counts
    assert counts.read == len(reasons)
    assert counts.rejected["line_too_long"] == 1
