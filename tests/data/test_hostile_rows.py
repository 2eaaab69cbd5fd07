"""Whatever rows hold, a build ends, accounts for each of them, and never reads what it should not."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmdata import BuildConfig, ToolkitError, build_folder, open_folder
from vlmdata.manifest import Counts
from vlmdata.preview import write_preview


def encode_image() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((24, 24)).save(buffer, "PNG")
    return buffer.getvalue()


words = st.text(max_size=12) | st.sampled_from(
    ["<image>", "What?", "<|im_end|>", "a\x00b", "\ud800", " ", "<image>\nWhat?"]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
images = st.sampled_from(
    ["a.png", "b.png", "absent.png", "../a.png", "file:///etc/passwd", "http://127.0.0.1:1/x", "", "a\0"]
)
roles = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", "", None])
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "video", None])}, optional={"text": words | anything, "image": images}
)
messages = st.fixed_dictionaries(
    {}, optional={"role": roles, "content": words | st.lists(parts, max_size=3) | anything}
)
conversations = st.fixed_dictionaries({}, optional={"from": roles, "value": words | anything})
rows = {
    "columns": st.fixed_dictionaries(
        {},
        optional={"image": images | anything, "question": words | anything, "answer": words | anything, "id": anything},
    ),
    "messages": st.fixed_dictionaries(
        {},
        optional={
            "messages": st.lists(messages, max_size=4) | anything,
            "images": st.lists(images, max_size=2) | anything,
        },
    ),
    "llava": st.fixed_dictionaries(
        {}, optional={"conversations": st.lists(conversations, max_size=4) | anything, "image": images | anything}
    ),
}
FIRST = {
    "columns": {"image": "a.png", "question": "Which?", "answer": "this", "id": "first"},
    "messages": {
        "messages": [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "me"}],
        "images": ["a.png"],
    },
    "llava": {
        "conversations": [{"from": "human", "value": "<image>Who?"}, {"from": "gpt", "value": "me"}],
        "image": "a.png",
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "set").mkdir()
    for path in (folder / "set" / "a.png", folder / "set" / "b.png", folder / "a.png"):
        path.write_bytes(encode_image())
    return folder


@pytest.mark.parametrize("format", list(rows))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_rows_of_any_shape_are_kept_or_rejected(place: Path, format: str, data: st.DataObject) -> None:
    drawn = [FIRST[format], *data.draw(st.lists(rows[format] | anything, max_size=6))]
    path = place / "set" / "rows.json"
    path.write_text(json.dumps(drawn), encoding="utf-8", errors="surrogatepass")
    shutil.rmtree(place / "out", ignore_errors=True)
    values = {
        "inputs": [str(path)],
        "out": place / "out",
        "workers": 0,
        "min_side": 8,
        "url_retries": 0,
        "max_reject_rate": 1.0,
    }
    report = build_folder(
        BuildConfig.from_values({**values, "keep": tuple(data.draw(st.sampled_from([(), tuple(FIRST[format])])))})
    )
    counts: Counts = report.manifest.counts
    assert counts.read == len(drawn) == counts.kept + sum(counts.rejected.values())
    lines = [json.loads(line) for line in (place / "out" / "rejected.jsonl").read_text().splitlines()]
    kept = [int(source.split(":")[1]) for source in open_folder(place / "out").split("train").column("source")]
    assert sorted([*kept, *(line["row"] for line in lines)]) == list(range(len(drawn)))
    assert kept[0] == 0


def test_each_hostile_row_has_its_reason(place: Path, tmp_path: Path) -> None:
    bomb = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, "PNG")
    (place / "set" / "bomb.png").write_bytes(bomb.getvalue())
    question = {"question": "Which?", "answer": "this"}
    hostile = {
        "image_outside_root": json.dumps({"image": "../a.png", **question}),
        "image_url_refused": json.dumps({"image": "file:///etc/passwd", **question}),
        "image_url_refused ": json.dumps({"image": "http://169.254.169.254/latest/meta-data", **question}),
        "image_bomb": json.dumps({"image": "bomb.png", **question}),
        "line_too_long": json.dumps({"image": "a.png", "question": "x" * 2_000_000, "answer": "y"}),
        "json_too_deep": '{"image": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "empty_text": '{"image": "a.png", "question": NaN, "answer": "y"}',
        "json_broken": '{"image": "a.png", "question": ',
        "template_token": json.dumps({"image": "a.png", "question": "<|im_start|>system", "answer": "y"}),
    }
    script = json.dumps({"image": "a.png", "question": "<script>alert(1)</script>", "answer": "text"})
    path = place / "set" / "hostile.jsonl"
    path.write_text("\n".join([script, *hostile.values()]))
    values = {
        "inputs": [str(path)],
        "out": tmp_path / "out",
        "workers": 1,
        "min_side": 8,
        "max_line_bytes": 1 << 20,
        "max_reject_rate": 1.0,
    }
    build_folder(BuildConfig.from_values(values))
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == [reason.strip() for reason in hostile]
    write_preview(tmp_path / "out", tmp_path / "page.html", split="train", rows=9, seed=None)
    assert "&lt;script&gt;alert(1)" in (tmp_path / "page.html").read_text()
    assert "<script" not in (tmp_path / "page.html").read_text()


def test_files_that_are_no_sets(tmp_path: Path) -> None:
    for name, content in (
        ("a.json", b"\x00\xff" * 50),
        ("b.csv", b"\x00" * 100),
        ("c.parquet", b""),
        ("d.jsonl", b"[" * 9000),
        ("e.json", b""),
    ):
        (tmp_path / name).write_bytes(content)
        config = BuildConfig.from_values(
            {
                "inputs": [str(tmp_path / name)],
                "out": tmp_path / "out",
                "workers": 0,
                "instruction": "a b",
                "response": "{c}",
            }
        )
        with pytest.raises(ToolkitError, match=f"{name}|no rows in the inputs"):
            build_folder(config)
        assert not (tmp_path / "out" / "manifest.json").exists()
