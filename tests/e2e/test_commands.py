"""The two programs as a user chains them: build, tiny, fit (stopped and resumed), eval, export, generate."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
STEPS = 6
# dropout draws random numbers, which a resumed run has to go on drawing
FIT = [
    "--max-steps",
    STEPS,
    "--lr",
    "1e-2",
    "--batch-size",
    2,
    "--grad-accum",
    2,
    "--eval-steps",
    2,
    "--dropout",
    "0.1",
]


# as sitecustomize, which Python imports when it starts
WATCH_HOSTS = """
import socket

def noting(host, *more, ask=socket.getaddrinfo, **named):
    with open({hosts!r}, "a") as file:
        file.write(str(host) + chr(10))
    return ask(host, *more, **named)

open({hosts!r}, "a").close()
socket.getaddrinfo = noting
"""


def environment(directory: Path) -> dict[str, str]:
    """This one's, with the hosts looked up noted in `hosts.txt`, and the stack of a crash in native code on stderr."""
    watch = WATCH_HOSTS.format(hosts=str(directory / "hosts.txt"))
    (directory / "sitecustomize.py").write_text(watch, encoding="utf-8")
    # without what makes libraries report less than they do to a user
    user = {name: value for name, value in os.environ.items() if name not in ("CI", "HF_HUB_DISABLE_TELEMETRY")}
    paths = filter(None, (str(directory), os.environ.get("PYTHONPATH")))
    return user | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONFAULTHANDLER": "1"}


def run(program: str, *arguments: object, directory: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command, which must not look a host up."""
    command = [sys.executable, "-m", program, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=directory, env=environment(directory), capture_output=True, text=True, timeout=600
    )
    assert (directory / "hosts.txt").read_text(encoding="utf-8") == ""
    return done


def succeed(program: str, *arguments: object, directory: Path) -> str:
    done = run(program, *arguments, directory=directory)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def read_losses(folder: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Picture files with a CSV, the folder built of them, a tiny model, and a finished run."""
    folder = tmp_path_factory.mktemp("chain")
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "colour"])
        for index in range(24):
            name, colour = list(COLOURS.items())[index % 3]
            picture = Image.new("RGB", (56, 56), colour)
            picture.putpixel((index, index), (0, 0, 0))
            picture.save(folder / f"{index}.png")
            writer.writerow([f"{index}.png", name])
        writer.writerow(["missing.png", "red"])
    said = succeed(
        "vlmdata", "build", "rows.csv", "--out", "data", "--instruction", "Which colour is this?",
        "--response", "{colour}", "--size", "56x56", "--dedup", "exact", "--split", "val=0.2", directory=folder,
    )  # fmt: skip
    assert "read 25 = kept 24 + rejected 1" in said
    succeed("vlmtrain", "tiny", "qwen2.5-vl", "model", "--hidden-size", 64, "--layers", 2, directory=folder)
    said = succeed("vlmtrain", "fit", "--data", "data", "--model", "model", "--out", "run", *FIT, directory=folder)
    assert "patches are embedded by a matrix product" in said
    return folder


def test_a_run_ended_by_sigterm_goes_on_to_the_same_weights(work: Path) -> None:
    command = ["-m", "vlmtrain", "fit", "--data", "data", "--model", "model", "--out", "stopped", *map(str, FIT)]
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=work,
        env=environment(work),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if line.startswith(f"step 3/{STEPS}: loss"):
                process.send_signal(signal.SIGTERM)
                break
        process.stdout.read()
        error = process.stderr.read()
    assert process.returncode == 143
    assert error.startswith("error: stopped by signal 15 after step ")
    assert error.endswith(f" of {STEPS}; a checkpoint is saved, --resume goes on from it\n")
    assert not (work / "stopped" / "run.json").exists()
    unfinished = run("vlmtrain", "eval", "stopped", directory=work)
    assert unfinished.returncode == 3
    assert "did not finish" in unfinished.stderr
    options = ["--data", "data", "--model", "model", "--out", "stopped", *FIT, "--resume"]
    assert "resuming from checkpoint-" in succeed("vlmtrain", "fit", *options, directory=work)
    assert read_losses(work / "stopped") == read_losses(work / "run")
    weights = [work / name / "adapter" / "adapter_model.safetensors" for name in ("run", "stopped")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_refusal_is_all_that_stands_on_stderr(work: Path) -> None:
    options = ["--data", "data", "--model", "model", "--out", "refused", "--load-in", "4bit"]
    done = run("vlmtrain", "fit", *options, directory=work)
    assert done.returncode == 4
    assert done.stderr == ("error: load_in '4bit' needs a GPU, and none is visible to torch; use 32bit or 16bit\n")
    assert not (work / "refused").exists()


def test_a_finished_run_is_evaluated_exported_and_asked(work: Path) -> None:
    succeed("vlmtrain", "eval", "run", "--swap-images", "--max-new-tokens", 4, directory=work)
    result = json.loads((work / "run" / "eval-val.json").read_text(encoding="utf-8"))
    assert result["rows"] == len((work / "run" / "eval-val.jsonl").read_text(encoding="utf-8").splitlines()) > 0
    assert set(result) >= {"scores", "swapped", "majority"}
    succeed("vlmtrain", "export", "run", "--out", "merged", directory=work)
    report = json.loads((work / "merged" / "export.json").read_text(encoding="utf-8"))
    assert report["parity"]["holds"]
    (work / "ask.jsonl").write_text(
        json.dumps({"prompt": "Which colour is this?", "image": "0.png"}) + "\n", encoding="utf-8"
    )
    one = succeed(
        "vlmtrain", "generate", "merged", "--image", "0.png", "--prompt", "Which colour is this?",
        "--max-new-tokens", 4, directory=work,
    )  # fmt: skip
    many = succeed("vlmtrain", "generate", "merged", "--batch", "ask.jsonl", "--max-new-tokens", 4, directory=work)
    assert json.loads(many)["answer"] == one.strip()


def test_make_sees_results_as_targets(work: Path) -> None:
    manifest = work / "data" / "manifest.json"
    before, time_before = manifest.read_bytes(), manifest.stat().st_mtime_ns
    time.sleep(0.01)
    succeed(
        "vlmdata", "build", "rows.csv", "--out", "data", "--instruction", "Which colour is this?",
        "--response", "{colour}", "--size", "56x56", "--dedup", "exact", "--split", "val=0.2", directory=work,
    )  # fmt: skip
    assert manifest.read_bytes() == before
    assert manifest.stat().st_mtime_ns > time_before
