from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import vlmdata


def test_every_public_name_can_be_had() -> None:
    assert set(vlmdata.__all__) == set(dir(vlmdata))
    for name in vlmdata.__all__:
        assert getattr(vlmdata, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vlmdata.nothing  # noqa: B018  (the access is what is tested)


@pytest.mark.parametrize(
    "name", [each.name for each in pkgutil.walk_packages(vlmdata.__path__, "vlmdata.") if "__main__" not in each.name]
)
def test_all_names_what_there_is(name: str) -> None:
    module = importlib.import_module(name)
    if name != "vlmdata.stage.preload":
        assert [each for each in module.__all__ if not hasattr(module, each)] == []
        assert list(module.__all__) == sorted(
            module.__all__, key=lambda each: (not each.isupper(), each[0].islower(), each)
        )


def test_what_training_imports_is_light() -> None:
    code = (
        "import sys\n"
        "import vlmdata.schema, vlmdata.manifest, vlmdata.shards, vlmdata.errors, vlmdata.families, vlmdata.inline\n"
        "print({'click', 'PIL', 'torch', 'datasets', 'yaml', 'tqdm', 'urllib3', 'xxhash'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
