"""The program from outside: what it prints, its exit codes, and that a user never sees a traceback."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

from vlmdata.cli import main


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    for i in range(4):
        Image.linear_gradient("L").rotate(90 * i).resize((40, 40)).save(tmp_path / f"{i}.png")
    lines = [{"image": f"{i}.png", "question": "Which way?", "answer": f"to side {i}", "when": "now"} for i in range(4)]
    lines.append({"image": "absent.png", "question": "Which way?", "answer": "nowhere", "when": "never"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "rows.jsonl"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def build(capsys: pytest.CaptureFixture[str], rows: Path, out: Path, *options: str) -> tuple[int, str, str]:
    return run(capsys, "build", rows, "--out", out, "--workers", "0", "--min-side", "16", *options)


def test_build_says_what_it_found_and_did(capsys: pytest.CaptureFixture[str], rows: Path, tmp_path: Path) -> None:
    code, out, err = build(capsys, rows, tmp_path / "out", "--split", "val=0.25")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "rows.jsonl: JSON lines; columns (image 'image', instruction 'question', response 'answer')"
    assert lines[1] == "read 5 = kept 4 + rejected 1"
    assert lines[2].split() == ["image_missing", "1"]
    assert lines[3].endswith("rejected.jsonl")
    assert "train 3, val 1 rows" in lines[4]


def test_options_win_over_the_config_file(capsys: pytest.CaptureFixture[str], rows: Path, tmp_path: Path) -> None:
    config = tmp_path / "build.yaml"
    config.write_text(
        f"inputs: {rows}\nout: {tmp_path / 'out'}\nworkers: 0\nmin_side: 16\nmax_side: 20\nsplit: val=0.25\n"
    )
    assert run(capsys, "build", "--config", config, "--max-side", "24")[0] == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["config"]["max_side"], manifest["config"]["split"]) == (24, "val=0.25")
    config.write_text("max_sied: 20\nmin_side: small\n")
    code, _, err = run(capsys, "build", rows, "--out", tmp_path / "out2", "--config", config)
    assert code == 2
    assert [line.startswith("error: ") for line in err.splitlines()] == [True, True]
    assert "did you mean 'max_side'?" in err
    assert "min_side: 'small' is not a whole number" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["build", "absent.csv", "--out", "OUT"], 2, "absent.csv: no such file or folder"),
        (["build", "ROWS"], 2, "no output folder given (--out)"),
        (["build", "--out", "OUT"], 2, "no input given"),
        (
            ["build", "ROWS", "--out", "OUT", "--instruction", "nope"],
            2,
            "columns: 'image', 'question', 'answer', 'when'",
        ),
        (["build", "ROWS", "--out", "OUT", "--where", "wehn == 1"], 2, "no column 'wehn'"),
        (["build", "ROWS", "--out", "OUT", "--max-sied", "3"], 2, "--max-sied"),
        (["build", "ROWS", "--out", "OUT", "--dedup", "some"], 2, "'some' is not one of"),
        (["build", "ROWS", "--out", "OUT", "--split", "val=3"], 2, "must lie between 0 and 1"),
        (
            ["build", "ROWS", "--out", "OUT", "--image-root", "/nowhere"],
            3,
            "none of 5 rows is left to keep (image_missing 5)",
        ),
        (["build", "ROWS", "--out", "ROWS/out"], 5, "cannot be written"),
        (["stats", "OUT"], 3, "the folder does not exist"),
        (["preview", "OUT"], 3, "the folder does not exist"),
        (["check", "absent.csv"], 2, "no such file or folder"),
        (["check", "ROWS", "--scratch", "/nowhere"], 5, "No such file or directory"),
        (["hash", "ROWS", "--out", "/nowhere/list.parquet"], 5, "there is no folder '/nowhere'"),
        (["fly"], 2, "No such command 'fly'"),
    ],
)
def test_errors_are_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str], rows: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    names = {"ROWS": str(rows), "OUT": str(tmp_path / "out"), "ROWS/out": str(rows / "out")}
    found, _, err = run(
        capsys, *[names.get(each, each) for each in arguments], *(["--workers", "0"] if "--out" in arguments else [])
    )
    assert found == code
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out" / "manifest.json").exists()
    # a mistake in the options leaves nothing behind
    assert code != 2 or not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["check", "hash"])
def test_no_folder_for_temporary_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rows: Path, tmp_path: Path, command: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    out = ["--out", str(tmp_path / "list.parquet")] if command == "hash" else []
    code, _, err = run(capsys, command, rows, "--workers", "0", *out)
    assert (code, err.count("\n")) == (5, 1)
    assert "No such file or directory" in err


def test_check_of_raw_input_writes_nothing(capsys: pytest.CaptureFixture[str], rows: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    code, out, _ = run(capsys, "check", rows, "--workers", "0", "--min-side", "16")
    assert code == 0
    assert "read 5 = kept 4 + rejected 1" in out
    assert sorted(tmp_path.iterdir()) == before
    report = tmp_path / "rejected.jsonl"
    code, _, err = run(capsys, "check", rows, "--workers", "0", "--max-reject-rate", "0.1", "--rejected", report)
    assert code == 3
    assert "1 of 5 rows are rejected" in err
    assert json.loads(report.read_text())["reason"] == "image_missing"


def test_check_of_a_built_folder(capsys: pytest.CaptureFixture[str], rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(capsys, rows, out)
    code, text, _ = run(capsys, "check", out)
    assert code == 0
    assert "whole; train 4 rows; checksums agree, 4 images decode" in text
    code, _, err = run(capsys, "check", out, "--max-side", "500", "--rejected", tmp_path / "rejected.jsonl")
    assert (code, err.count("\n")) == (2, 1)
    assert "takes no options for raw inputs: --max-side, --rejected" in err
    shard = out / "train" / "data-00000-of-00001.arrow"
    content = shard.read_bytes()
    at = content.index(b"IDAT") + 20
    shard.write_bytes(content[:at] + bytes(40) + content[at + 40 :])
    code, _, err = run(capsys, "check", out)
    assert code == 3
    assert "SHA-256" in err
    # the same damage with a manifest that vouches for it
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    (out / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = run(capsys, "check", out)
    assert code == 3
    assert "image does not decode" in err


def test_stats(capsys: pytest.CaptureFixture[str], rows: Path, tmp_path: Path) -> None:
    build(capsys, rows, tmp_path / "out")
    code, text, _ = run(capsys, "stats", tmp_path / "out")
    assert code == 0
    assert "train: 4 rows, 4 images" in text
    figures = json.loads(run(capsys, "stats", tmp_path / "out", "--json")[1])
    assert figures == json.loads((tmp_path / "out" / "stats.json").read_text())
    assert figures["splits"]["train"]["longest_side_px"] == {"0-99": 4}
    assert figures["splits"]["train"]["text_chars"] == {"min": 19, "median": 19, "max": 19}


def test_preview_escapes_what_the_data_says(capsys: pytest.CaptureFixture[str], rows: Path, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    line = {"id": evil, "image": "0.png", "question": evil, "answer": evil, "when": evil}
    rows.write_text(json.dumps(line) + "\n" + rows.read_text())
    build(capsys, rows, tmp_path / "out", "--keep", "when", "--response", "answer")
    page = tmp_path / "page.html"
    code, text, _ = run(capsys, "preview", tmp_path / "out", "--out", page, "--rows", "3")
    assert code == 0
    assert "3 rows of split 'train'" in text
    html = page.read_text()
    assert "<script" not in html
    assert "<img src=x" not in html
    assert html.count("&lt;script&gt;") >= 4
    assert html.count("<article>") == 3
    assert html.count("data:image/png;base64,") == 3
    assert "default-src 'none'" in html


def test_preview_of_random_rows(capsys: pytest.CaptureFixture[str], rows: Path, tmp_path: Path) -> None:
    build(capsys, rows, tmp_path / "out")
    pages = [tmp_path / f"{i}.html" for i in range(2)]
    for page in pages:
        run(capsys, "preview", tmp_path / "out", "--out", page, "--rows", "2", "--seed", "5")
    assert pages[0].read_text() == pages[1].read_text()
    assert run(capsys, "preview", tmp_path / "out", "--split", "dev")[0] == 3


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


OPTIONS = """
    --image --image-root --instruction --response --system --format --where --source-split --source-config --min-side
    --max-side --size --fit --multiple-of --dedup --dedup-scope --near-distance --split --seed --group-by --keep
    --workers --max-reject-rate --shard-size --overwrite --config --out
"""


def test_help_names_every_option_and_imports_nothing_heavy() -> None:
    code = """
        import sys, vlmdata.cli
        for arguments in (["--help"], ["build", "--help"]):
            vlmdata.cli.main(arguments)
        print({"PIL", "numpy", "pyarrow", "datasets", "yaml", "tqdm", "urllib3"} & set(sys.modules))
    """
    result = run_program("-c", textwrap.dedent(code))
    assert result.stdout.splitlines()[-1] == "set()"
    assert [option for option in OPTIONS.split() if f"  {option} " not in result.stdout] == []


def test_python_m_and_version() -> None:
    result = run_program("-m", "vlmdata", "--version")
    assert result.returncode == 0
    assert "vlmdata, version 0.1.0" in result.stdout
    assert run_program("-m", "vlmdata").returncode == 2


def test_a_bug_is_a_traceback(monkeypatch: pytest.MonkeyPatch, rows: Path, tmp_path: Path) -> None:
    monkeypatch.setattr("vlmdata.build.build_folder", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["build", str(rows), "--out", str(tmp_path / "out")])


def test_output_that_nobody_reads(rows: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m vlmdata build {rows} --out {tmp_path / 'out'} --workers 0 --min-side 16 | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr
