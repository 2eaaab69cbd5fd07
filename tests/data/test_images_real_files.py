"""Files that other people made: Pillow's own corpus of odd and hostile ones, photos in all orientations, containers."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmdata import open_folder
from vlmdata.check import check_folder
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


# Runs in a process of its own: what these files do to one is for the build to survive, not for the test.
LOAD = """
import io, json, sys, warnings
from pathlib import Path
from PIL import Image

warnings.simplefilter("ignore")
for path in sys.stdin.read().splitlines():
    try:
        Image.open(io.BytesIO(Path(path).read_bytes())).load()
        loads = True
    except Exception:
        loads = False
    print(json.dumps(loads))
"""


def resident_bytes(process: int) -> int:
    """Resident memory of a process and all processes below it; pages that they share count once for each."""
    total = 0
    try:
        status = Path(f"/proc/{process}/status").read_text().split()
        total = int(status[status.index("VmRSS:") + 1]) * 1024
        below = (task / "children" for task in Path(f"/proc/{process}/task").iterdir())
        return total + sum(resident_bytes(int(child)) for each in below for child in each.read_text().split())
    except (OSError, ValueError):  # it has just ended
        return total


def test_one_build_of_odd_files_keeps_all_that_pillow_loads_and_rejects_the_others_truly(tmp_path: Path) -> None:
    root = folder("bad-images")
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    lines = "".join(f'"{name}",What is this?,A test image.\n' for name in files)
    (tmp_path / "images.csv").write_text(f"image,question,answer\n{lines}")
    options = f"--image-root {root} --dedup none --max-reject-rate 1 --workers 2 --out {tmp_path / 'out'}"
    command = [sys.executable, "-m", "vlmdata", "build", str(tmp_path / "images.csv"), *options.split()]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        while run.poll() is None:
            peak = max(peak, resident_bytes(run.pid))
            time.sleep(0.1)
        assert run.stderr is not None
        # what the C libraries say stands with the row that it is about
        assert run.stderr.read() == ""
    assert run.returncode == 0
    assert peak < 1.5e9
    assert "whole; train" in check_folder(tmp_path / "out", on_rows=lambda _: None)
    rejected = {
        line["row"]: line for line in map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    }
    built = open_folder(tmp_path / "out")
    kept = {int(source.partition(":")[2]): row for row, source in enumerate(built.split("train").column("source"))}
    assert sorted([*kept, *rejected]) == list(range(len(files)))
    paths = "\n".join(str(root / name) for name in files)
    judged = subprocess.run([sys.executable, "-c", LOAD], input=paths, capture_output=True, text=True, check=True)
    for row, (name, loads) in enumerate(zip(files, map(json.loads, judged.stdout.splitlines()), strict=True)):
        if row in kept:
            assert loads, name
        else:
            assert rejected[row]["detail"], name
            assert not loads or rejected[row]["reason"] in LIMITS, (name, rejected[row])
    assert len(kept) > 750
    assert max(max(size) for sizes in built.split("train").stored_sizes() for size in sizes) <= 1000
    notes = [info["note"] for infos in built.split("train").column("image_info") for info in infos]
    details = [line["detail"] for line in rejected.values()]
    assert any("TIFF" in (note or "") for note in [*notes, *details])


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
