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
    [
        "a.png",
        "b.png",
        "absent.png",
        "../a.png",
        "file:///etc/passwd",
        "http://127.0.0.1:1/x",
        "",
        "a\0",
        "\ud800.png",
        "\udcff.png",
    ]
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
