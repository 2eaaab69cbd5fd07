"""Whatever rows of any format hold, each of them is kept or rejected, and nothing else happens."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmdata.build import build_folder
from vlmdata.build_config import BuildConfig
from vlmdata.check import check_inputs
from vlmdata.config import ColumnConfig, InputConfig
from vlmdata.formats import convert_row, encode_meta, expand_answers, plan_reading
from vlmdata.sample import Problem, Sample
from vlmdata.shard_writer import rows_to_batch
from vlmdata.shards import open_folder
from vlmdata.text_config import TextConfig

words = st.text(max_size=12) | st.sampled_from(
    ["<image>", "What?", "<|im_end|>", "a\x00b", "\ud800", " ", "<img>a.png</img>?", "<img>", "</img>", "B", "1"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=8
)
images = st.sampled_from(["a.png", "b.png", "absent.png", "../a.png", "http://127.0.0.1:1/x", "data:,x", "", "a\0"])
roles = st.sampled_from(["user", "assistant", "system", "developer", "human", "gpt", "tool", "", None])


def loose(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return strategy | anything


def objects(**fields: st.SearchStrategy) -> st.SearchStrategy:
    return st.fixed_dictionaries({}, optional={name.strip("_"): loose(each) for name, each in fields.items()})


def lists(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(loose(strategy), max_size=4)


parts = objects(
    type=st.sampled_from(["text", "image", "image_url", "video", None]),
    text=words,
    image=images,
    path=images,
    url=images,
    base64=words,
    image_url=objects(url=images) | images,
)
messages = lists(objects(role=roles, content=words | lists(parts), weight=st.integers(0, 1), tool_calls=anything))
turns = lists(st.fixed_dictionaries({}, optional={"from": loose(roles), "value": loose(words)}))
history = lists(st.tuples(words, words).map(list))
boxes = st.lists(st.lists(st.floats(-9, 9), min_size=4, max_size=4), max_size=2)
shown = {
    "objects": objects(bbox=boxes, label=lists(words), image_index=lists(st.integers(-1, 1))),
    "image": images | lists(images),
    "images": images | lists(images),
}
ROWS = {
    "columns": objects(question=words, answers=words | lists(words), choices=lists(words), id=anything, **shown),
    "messages": objects(messages=messages, **shown),
    "openai": objects(messages=messages, **shown),
    "axolotl": objects(messages=messages, **shown),
    "trl": objects(prompt=words | messages, completion=words | messages, **shown),
    "llava": objects(conversations=turns, **shown),
    "sharegpt": objects(
        conversations=turns | messages | lists(objects(human=words, assistant=words)), system=words, **shown
    ),
    "llamafactory": objects(conversations=turns, system=words, tools=words, **shown),
    "swift": objects(query=words, response=words, history=history, system=words, **shown),
    "alpaca": objects(instruction=words, input=words, output=words, history=history, system=words, **shown),
    "finevision": objects(texts=lists(objects(user=words, assistant=words)), **shown),
    "captions": objects(image_id=scalars, captions=words | lists(words), **shown),
}
FIRST = {
    "columns": {"image": "a.png", "question": "a", "answers": ["b"], "choices": ["b", "c"]},
    "messages": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "trl": {"prompt": "a", "completion": "b"},
    "llava": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "swift": {"query": "a", "response": "b", "history": []},
    "alpaca": {"instruction": "a", "input": "", "output": "b"},
    "finevision": {"texts": [{"user": "a", "assistant": "b"}]},
    "captions": {"image_id": 1, "image": "a.png", "captions": ["b"]},
}
FIRST["openai"] = FIRST["axolotl"] = FIRST["messages"]
FIRST["sharegpt"] = FIRST["llamafactory"] = FIRST["llava"]
ENTRY = {"formatting": "sharegpt", "columns": {"images": "images", "system": "system", "tools": "tools"}}


def test_all_formats_are_drawn() -> None:
    assert set(ROWS) == set(FIRST) == set(get_args(get_type_hints(InputConfig)["format"])) - {"auto"}


@pytest.mark.parametrize("format", ROWS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_row_becomes_a_writable_sample_or_a_problem(format: str, data: st.DataObject) -> None:
    texts = TextConfig(
        answers=data.draw(st.sampled_from(["first", "all", "most-common"])),
        choices=data.draw(st.sampled_from(["letter", "text", "ignore"])),
        control_characters=data.draw(st.sampled_from(["reject", "strip"])),
        box_format=data.draw(st.sampled_from([None, "xyxy"])),
        max_repetition=data.draw(st.sampled_from([1.0, 0.5])),
    )
    columns = ColumnConfig(keep=tuple(FIRST[format]), template_tokens=data.draw(st.sampled_from(["reject", "escape"])))
    description = ENTRY if format == "llamafactory" else None
    reading = plan_reading(
        [FIRST[format]], InputConfig(format=format), columns, None, texts=texts, description=description
    )
    first = convert_row(FIRST[format], 0, "set", reading)
    assert isinstance(first, Sample)
    drawn = data.draw(st.lists(ROWS[format], max_size=4))
    expanded = list(expand_answers(enumerate(drawn), reading))
    assert sorted({index for index, _ in expanded}) == list(range(len(drawn)))
    for index, row in expanded:
        outcome = convert_row(row, index, "set", reading)
        if isinstance(outcome, Problem):
            assert outcome.reason.isidentifier()
            assert "\n" not in outcome.detail or format == "columns"
            continue
        assert outcome.objects is None or len(outcome.objects.bbox) == len(outcome.objects.label)
        assert sum(part.type == "image" for m in outcome.messages for part in m.content) == len(outcome.images)
        assert outcome.references
        # it can be written to a shard as it is
        assert rows_to_batch([outcome.to_row([], encode_meta(outcome))]).num_rows == 1


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((24, 24)).save(buffer, "PNG")
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(buffer.getvalue())
    return folder


@pytest.mark.parametrize("format", [name for name in ROWS if name != "llamafactory"])
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_every_row_is_accounted_for(place: Path, format: str, data: st.DataObject) -> None:
    drawn = [FIRST[format], *data.draw(st.lists(ROWS[format] | anything, max_size=6))]
    path, report = place / "rows.json", place / "rejected.jsonl"
    path.write_text(json.dumps(drawn), encoding="utf-8", errors="surrogatepass")
    values = {"inputs": (str(path),), "out": place / "out", "workers": 0, "min_side": 8, "dedup": "none"}
    counts = check_inputs(
        BuildConfig.from_values({**values, "format": format, "download": False, "max_reject_rate": 1.0}),
        rejected=report,
        on_partition=lambda _: None,
        on_note=lambda _: None,
    )
    lines = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    assert counts.read == len(drawn) == counts.kept + len(lines)
    assert len({line["row"] for line in lines}) == len(lines)
    assert all(line["row"] for line in lines)


# What each format is told by, where the first row above has too little of it.
TOLD_BY = {
    **FIRST,
    "openai": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "a"}],
            },
            {"role": "assistant", "content": "b"},
        ]
    },
    "axolotl": {
        "messages": [
            {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        ]
    },
    "llava": {**FIRST["llava"], "image": "a.png"},
}
HEAD_ROWS = 64


def draw_rows(strategy: st.SearchStrategy, count: int) -> list[object]:
    """Rows for one large build: starting a pool of workers for each of them would take minutes."""
    drawn: list[object] = []

    @settings(max_examples=count, deadline=None, derandomize=True, database=None)
    @given(strategy)
    def collect(row: object) -> None:
        drawn.append(row)

    collect()
    return drawn


def write_sets(folder: Path, rows: int) -> Iterator[Path]:
    for format in ROWS:
        drawn = draw_rows(ROWS[format] | anything, rows)
        path = folder / f"{format}.json"
        if format == "captions":
            images = [{"id": i, "file_name": "ab"[i % 2] + ".png"} for i in range(9)]
            captions = [{"image_id": i, "caption": f"c {i}"} for i in range(9)]
            content: object = {"images": images + drawn[::2], "annotations": captions + drawn[1::2]}
        else:
            content = [*[TOLD_BY[format]] * HEAD_ROWS, *drawn]
        path.write_text(json.dumps(content), encoding="utf-8", errors="surrogatepass")
        yield path
    entries = {"any": {"file_name": "llamafactory.json", **ENTRY}}
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for i, row in enumerate(draw_rows(anything, rows)):
            text = json.dumps(row).encode("utf-8", "surrogatepass")
            for suffix, data in (("png", (folder / "a.png").read_bytes()), ("txt", text), ("json", text))[i % 3 :]:
                member = tarfile.TarInfo(f"{i}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    yield folder / "shard.tar"
    cells = st.text(max_size=9) | st.sampled_from(["a.png", "b.png", '"', "a,b", "\0", "\r", "é"])
    lines = [",".join(row) for row in draw_rows(st.lists(cells, max_size=5), rows)]
    table = "\n".join(["image,question,answer", *["a.png,a,b"] * HEAD_ROWS, *lines])
    (folder / "table.csv").write_text(table, encoding="utf-8", errors="surrogatepass")
    yield folder / "table.csv"


def test_one_build_of_rows_of_all_formats_is_the_same_for_one_and_four_workers(place: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes((place / name).read_bytes())
    paths = [str(path) for path in write_sets(tmp_path, 60)]
    values = {"inputs": paths, "min_side": 8, "split": "val=0.3", "max_reject_rate": 1.0, "download": False}
    manifests = []
    for workers in (1, 4):
        out = tmp_path / f"out-{workers}"
        manifests.append(build_folder(BuildConfig.from_values({**values, "out": out, "workers": workers})).manifest)
    one, four = manifests
    assert (one.splits, one.counts, one.fingerprint) == (four.splits, four.counts, four.fingerprint)
    for name in ("rejected.jsonl", "report.html", "stats.json"):
        assert (tmp_path / "out-1" / name).read_bytes() == (tmp_path / "out-4" / name).read_bytes()
    assert {each["path"]: each["format"] for each in one.inputs} == {
        **{f"{format}.json": format for format in ROWS},
        "shard.tar": "captions",
        "table.csv": "columns",
    }
    # each row that was read is once in a split or in rejected.jsonl
    kept = [source for split in open_folder(tmp_path / "out-1").splits.values() for source in split.column("source")]
    lines = [json.loads(line) for line in (tmp_path / "out-1" / "rejected.jsonl").read_text().splitlines()]
    everyone = sorted([*kept, *(f"{line['source']}:{line['row']}" for line in lines)])
    rows = sorted(f"{each['path']}:{i}" for each in one.inputs for i in range(each["rows"]))
    assert everyone == rows
    assert len(kept) == one.counts.kept > 12
