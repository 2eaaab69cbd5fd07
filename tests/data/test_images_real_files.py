"""Files that other people made: Pillow's own corpus of odd and hostile ones, photos in all orientations, containers."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmdata.config import ImageConfig
from vlmdata.images import ImageProblem, PreparedImage, prepare_image

pytestmark = pytest.mark.shared_data

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
# What the config refuses although Pillow reads it.
LIMITS = ("image_too_small", "image_aspect", "image_bomb", "image_too_large_bytes", "multi_page")


def folder(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"the shared set {name} is not beside this checkout")
    return SHARED / name


# Runs in a process of its own, so that the memory it peaks at is what these files take.
JUDGE = """
import io, json, sys, warnings
from pathlib import Path
from PIL import Image
from vlmdata.config import ImageConfig
from vlmdata.images import PreparedImage, prepare_image

def pillow_loads(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Image.open(io.BytesIO(data)).load()
        except Exception:
            return False
    return True

def peak_bytes():
    # not getrusage: its maximum begins with that of the process that this one was forked from
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

judged = []
for path in sys.stdin.read().splitlines():
    data = Path(path).read_bytes()
    outcome = prepare_image(data, ImageConfig())
    kept = isinstance(outcome, PreparedImage)
    line = {"path": path, "reason": "kept", "detail": outcome.note} if kept else {
        "path": path, "reason": outcome.reason, "detail": outcome.detail
    }
    if kept:
        stored = Image.open(io.BytesIO(outcome.data))
        stored.load()
        line["as_described"] = stored.size == (outcome.width, outcome.height) and stored.format == outcome.format
        line["in_bounds"] = max(stored.size) <= 1000 and stored.mode in ("RGB", "L")
    judged.append(line | {"peak_bytes": peak_bytes()})
for line in judged:
    print(json.dumps(line | {"pillow_loads": pillow_loads(Path(line["path"]).read_bytes())}))
"""


def test_every_odd_file_is_kept_or_has_a_true_reason() -> None:
    files = [str(path) for path in sorted(folder("bad-images").rglob("*")) if path.is_file()]
    run = subprocess.run(
        [sys.executable, "-c", JUDGE], input="\n".join(files), capture_output=True, text=True, check=True
    )
    judged = [json.loads(line) for line in run.stdout.splitlines()]
    assert [line["path"] for line in judged] == files
    for line in judged:
        if line["reason"] == "kept":
            assert line["pillow_loads"], line
            assert line["as_described"], line
            assert line["in_bounds"], line
        else:
            assert line["detail"], line
            assert not line["pillow_loads"] or line["reason"] in LIMITS, line
    assert sum(line["reason"] == "kept" for line in judged) > 750
    assert judged[-1]["peak_bytes"] < 1.5e9


def shown(outcome: PreparedImage | ImageProblem) -> np.ndarray:
    assert isinstance(outcome, PreparedImage)
    return np.asarray(Image.open(io.BytesIO(outcome.data)).convert("RGB"), dtype=np.int16)


@pytest.mark.parametrize("shape", ["Landscape", "Portrait"])
def test_photos_come_out_the_same_in_every_orientation(shape: str) -> None:
    paths = [folder("orientation") / f"{shape}_{orientation}.jpg" for orientation in range(1, 9)]
    photos = [shown(prepare_image(path.read_bytes(), ImageConfig())) for path in paths]
    for photo in photos[1:]:
        assert photo.shape == photos[0].shape
        assert np.abs(photo - photos[0]).mean() <= 3


def test_one_scene_is_one_scene_in_every_mode_and_container() -> None:
    hopper = [path for path in sorted(folder("bad-images").glob("hopper*")) if path.suffix not in (".heif", ".pil")]
    reference = prepare_image((folder("bad-images") / "hopper.ppm").read_bytes(), ImageConfig())
    assert isinstance(reference, PreparedImage)
    same = 0
    for path in hopper:
        outcome = prepare_image(path.read_bytes(), ImageConfig())
        if isinstance(outcome, PreparedImage) and (outcome.original_width, outcome.original_height) == (128, 128):
            codes = (np.frombuffer(o.phash, np.uint8) for o in (outcome, reference))
            same += int(np.bitwise_count(np.bitwise_xor(*codes)).sum()) <= 31
    assert same >= 55


def test_clothing_photos_are_stored_as_they_are() -> None:
    photos = sorted((folder("clothing") / "images").glob("*.jpg"))[:100]
    outcomes = [(path.read_bytes(), prepare_image(path.read_bytes(), ImageConfig())) for path in photos]
    assert all(isinstance(outcome, PreparedImage) and outcome.data == data for data, outcome in outcomes)
