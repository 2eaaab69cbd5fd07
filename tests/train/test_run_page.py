"""run.html and the learning curves."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from made_rows import make_conversation, turn, write_folder
from vlmtrain.config import FitConfig
from vlmtrain.curves import draw_curves, smooth
from vlmtrain.training import fit

HOSTILE = "<script>alert('x')</script> & \"quoted\" \u202e"
# ends a line for str.splitlines, and stands as it is in a line of JSON
SEPARATED = "<b>red</b>\u2028or not"


@pytest.fixture(scope="module")
def reported(tiny_qwen, tmp_path_factory):
    """A run with a page, on rows whose texts are markup."""
    folder = tmp_path_factory.mktemp("page")
    rows = [
        make_conversation(i, [turn("user", None, HOSTILE), turn("assistant", SEPARATED)], [(56, 56)]) for i in range(6)
    ]
    data = write_folder(folder / "<data>", {"train": rows[:4], "val": rows[4:]})
    values = {"data": data, "model": str(tiny_qwen), "out": folder / "run<1>", "max_steps": 2, "eval_steps": 1}
    values |= {"backend": "transformers", "batch_size": 2, "grad_accum": 1, "lr": 1e-3}
    return fit(FitConfig.from_values(values))


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes) -> None:
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_shows_the_run(reported) -> None:
    page = Page(reported.page.read_text())
    report = json.loads(reported.report.read_text())
    for title in ("Learning curves", "Answers to val rows", "Evaluations", "Parameters", "Time", "Data", "Settings"):
        assert title in page.words
    for value in (report["data_fingerprint"], report["data_manifest_sha256"], report["environment"]["packages"]["trl"]):
        assert value in page.words
    assert f"kept: step {report['best_step']}" in page.words
    for part in report["parameters"].values():
        assert f"{part['all']:,}" in page.words
    # the curves, and a picture for each of the two val rows
    assert page.tags.count("img") == 3
    answers = [json.loads(line) for line in reported.answers.read_text().rstrip("\n").split("\n")]
    assert [answer["step"] for answer in answers] == [report["best_step"]] * 2
    for answer in answers:
        assert answer["answer"] in page.words


def test_the_page_is_whole_and_runs_nothing(reported) -> None:
    text = reported.page.read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "<script>alert('x')</script>" in page.words
    assert "\u202e" not in text
    assert all(source.startswith(("data:image/", "#")) for source in page.sources)
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'", text)


def test_the_curves_are_a_picture(reported) -> None:
    with Image.open(reported.curves) as picture:
        assert (picture.format, picture.width > 1000) == ("PNG", True)


LOGS = [{"step": i, "loss": 1 / i, "learning_rate": 1e-4, "grad_norm": 1.0} for i in range(1, 61)]
EVALUATIONS = [{"step": i, "eval_loss": 1 / i, "eval_cer": 1 / i} for i in (20, 40, 60)]


def test_panels_are_as_many_as_there_is_to_show() -> None:
    sizes = []
    for logs in (LOGS, LOGS + EVALUATIONS, []):
        with Image.open(io.BytesIO(draw_curves(logs, best_step=40))) as picture:
            sizes.append(picture.size)
            grey = picture.convert("L")
            sizes[-1] += (sum(pixel < 128 for pixel in grey.resize((400, 300)).tobytes()),)
    # metrics of answers fill the fourth place of the same grid; without a log nothing is drawn
    assert sizes[0][:2] == sizes[1][:2]
    assert sizes[1][2] > sizes[0][2] > sizes[2][2]
    assert draw_curves(LOGS) == draw_curves(LOGS)


def test_a_running_mean() -> None:
    assert smooth([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]
    assert smooth([], 3) == []


def test_a_run_repeats_from_its_own_config(reported, tmp_path) -> None:
    from vlmdata.options import read_yaml
    from vlmtrain.config import SECTIONS

    values = read_yaml(reported.config, SECTIONS)
    # it holds from any working directory
    assert all(str(values[name]).startswith("/") for name in ("data", "model", "out"))
    again = fit(FitConfig.from_values(values | {"out": tmp_path / "again", "report": False}))
    logs = [[json.loads(line) for line in run.metrics.read_text().splitlines()] for run in (reported, again)]
    for first, second in zip(*logs, strict=True):
        assert [first.get(key) for key in ("step", "loss", "eval_loss", "grad_norm")] == [
            second.get(key) for key in ("step", "loss", "eval_loss", "grad_norm")
        ]
