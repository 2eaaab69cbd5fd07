"""The wheel of vlmdata by itself: installed where there is no torch and no datasets, it builds a folder."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

PACKAGE = Path(__file__).parents[2] / "packages" / "vlmdata"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made by the package's own build backend."""
    folder = tmp_path_factory.mktemp("wheel")
    code = f"import os, hatchling.build as b; os.chdir({str(PACKAGE)!r}); print(b.build_wheel({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    (path,) = folder.glob("vlmdata-*.whl")
    return path


def add_required(requirements: list[str], found: set[str]) -> None:
    """Add the names of distributions, and of all that they require here without extras."""
    for requirement in map(Requirement, requirements):
        if requirement.name not in found and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
            found.add(requirement.name)
            add_required(importlib.metadata.requires(requirement.name) or [], found)


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and, by links, what it says it needs; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    here = Path(sysconfig.get_paths()["purelib"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    needed: set[str] = set()
    add_required(importlib.metadata.PathDistribution(next(site.glob("vlmdata-*.dist-info"))).requires or [], needed)
    for name in needed:
        for file in importlib.metadata.distribution(name).files or ():
            top = Path(file).parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists() and (here / top).exists():
                (site / top).symlink_to(here / top)
    return folder / "bin" / "python"


def run(python: Path, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    result = subprocess.run([str(python), *arguments], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_builds_without_torch_and_datasets(python: Path, tmp_path: Path) -> None:
    absent = run(
        python, "-c", "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'datasets', 'pytest')])"
    )
    assert absent.strip() == "[None, None, None]"
    assert str(python.parent.parent) in run(python, "-c", "import vlmdata; print(vlmdata.__file__)")
    for i in range(3):
        Image.linear_gradient("L").rotate(90 * i).save(tmp_path / f"{i}.png")
    lines = [{"image": f"{i}.png", "question": "Which?", "answer": str(i)} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = run(
        python, "-m", "vlmdata", "build", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out"), "--workers", "1"
    )
    assert "read 3 = kept 3 + rejected 0" in out
    assert "whole" in run(python, "-m", "vlmdata", "check", str(tmp_path / "out"))


def test_the_hub_extra_is_named_where_it_is_missing(python: Path) -> None:
    result = subprocess.run(
        [str(python), "-m", "vlmdata", "check", "owner/name"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 4
    assert result.stderr.strip().endswith("pip install 'vlmdata[hf]'")


def test_the_wheel_holds_the_package_and_its_types(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "vlmdata/py.typed" in names
    assert {name.split("/")[0] for name in names} == {
        "vlmdata",
        next(n for n in names if n.endswith("METADATA")).split("/")[0],
    }
    assert any(name.endswith("entry_points.txt") for name in names)
