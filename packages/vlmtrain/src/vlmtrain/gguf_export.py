"""GGUF for llama.cpp: its own converter makes the language model's file and the vision projector's; both are read back.

llama.cpp is never downloaded or built here. Its folder is named by `--llama-cpp` or $UNSLOTH_LLAMA_CPP_PATH.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError, MissingDependencyError

__all__ = ["GgufFiles", "LlamaCpp", "check_gguf", "find_llama_cpp", "write_gguf"]

PATH_VARIABLE = "UNSLOTH_LLAMA_CPP_PATH"
_CONVERTER = "convert_hf_to_gguf.py"
_CONVERTED_TYPES = ("bf16", "f16")
"""What the converter writes by itself; anything narrower is made of bf16 by llama-quantize."""
# bf16 and float32 hold a merged weight exactly; float16 rounds the smallest ones.
_SQUARES_TOLERANCE = {"bf16": 1e-9, "f16": 1e-6}
_CHUNK_VALUES = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCpp:
    """The programs of a llama.cpp folder that an export needs."""

    converter: Path
    """convert_hf_to_gguf.py."""
    quantizer: Path | None
    """llama-quantize; not needed for bf16 and f16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFiles:
    """What was read back from the files."""

    model: str
    """File of the language model."""
    projector: str
    """File of the vision tower and its projector."""
    architecture: str
    """What llama.cpp calls the language model."""
    model_tensors: int
    projector_tensors: int
    vision_blocks: int
    """Layers of the vision tower."""
    trained_layers: int
    """Layers that training changed."""
    trained_layers_found: int
    """Of these, whose merged weights are in the files, value for value."""

    def to_json(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)


def find_llama_cpp(folder: Path | None, gguf_type: str) -> LlamaCpp:
    """Finds the programs, before anything is loaded.

    Args:
        folder: What --llama-cpp named; None for the environment variable.
        gguf_type: What the language model is to be stored in.

    Raises:
        MissingDependencyError: No folder is named, or a program or the gguf package is missing.
        ConfigError: The folder is no llama.cpp.
    """
    named = folder or (Path(os.environ[PATH_VARIABLE]) if os.environ.get(PATH_VARIABLE) else None)
    if named is None:
        raise MissingDependencyError(
            f"--format gguf needs llama.cpp: git clone it, and name its folder with --llama-cpp or ${PATH_VARIABLE}"
        )
    converter = named.expanduser() / _CONVERTER
    if not converter.is_file():
        raise ConfigError(f"{named}: no {_CONVERTER} in it; name the folder of a llama.cpp checkout")
    try:
        import gguf  # noqa: F401  # missed before the model is merged, not after
    except ImportError as error:
        raise MissingDependencyError("--format gguf reads its files back: pip install 'vlmtrain[gguf]'") from error
    quantizer = None
    if gguf_type not in _CONVERTED_TYPES:
        places = (converter.parent, converter.parent / "build" / "bin", converter.parent / "bin")
        found = shutil.which("llama-quantize", path=os.pathsep.join(map(str, places))) or shutil.which("llama-quantize")
        if found is None:
            raise MissingDependencyError(
                f"--gguf-type {gguf_type} needs llama-quantize, which is neither built in {named} nor on the PATH; "
                "build llama.cpp, or take bf16 or f16"
            )
        quantizer = Path(found)
    return LlamaCpp(converter=converter, quantizer=quantizer)


def write_gguf(
    llama_cpp: LlamaCpp,
    merged: Path,
    out: Path,
    *,
    stem: str,
    gguf_type: str,
    weight_squares: Mapping[str, float],
    may_lack: float,
) -> GgufFiles:
    """Converts a merged model and reads the files back.

    Args:
        llama_cpp: From `find_llama_cpp`.
        merged: Folder of the merged 16-bit model, with its processor.
        out: Folder to write to.
        stem: Beginning of the files' names.
        gguf_type: What the language model is stored in.
        weight_squares: Sum of squares of the merged weights, by layer, of the layers that training changed.
        may_lack: Share of these that llama.cpp may leave out.

    Raises:
        DataError: llama.cpp refuses the model, or the files are not the model.
    """
    wide = gguf_type if gguf_type in _CONVERTED_TYPES else "bf16"
    projector = out / f"mmproj-{stem}-{wide.upper()}.gguf"
    model = out / f"{stem}-{wide.upper()}.gguf"
    convert = [sys.executable, str(llama_cpp.converter), str(merged), "--outtype", wide]
    _run([*convert, "--outfile", str(model)], "converter, on the language model")
    _run([*convert, "--mmproj", "--outfile", str(projector)], "converter, on the vision tower")
    found = check_gguf(model, projector, weight_squares, tolerance=_SQUARES_TOLERANCE[wide], may_lack=may_lack)
    if llama_cpp.quantizer is None:
        return found
    narrow = out / f"{stem}-{gguf_type.upper()}.gguf"
    _run([str(llama_cpp.quantizer), str(model), str(narrow), gguf_type.upper()], "llama-quantize")
    tensors = len(_reader(narrow).tensors)
    if tensors != found.model_tensors:
        raise DataError(f"{narrow.name}: {tensors} tensors after quantising, {found.model_tensors} before")
    model.unlink()
    return GgufFiles(**(found.to_json() | {"model": narrow.name}))


def _run(command: list[str], what: str) -> None:
    print(f"llama.cpp's {what}: {' '.join(command[-6:])}", flush=True)
    # the folder is here already: nothing is to be fetched
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise DataError(f"llama.cpp's {what} cannot be run: {error}") from error
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise DataError(f"llama.cpp's {what} failed: {said[-1] if said else f'exit code {done.returncode}'}")


def check_gguf(
    model: Path,
    projector: Path,
    weight_squares: Mapping[str, float],
    *,
    tolerance: float = 1e-9,
    may_lack: float = 0.0,
) -> GgufFiles:
    """Reads both files and looks the trained layers' weights up in them.

    llama.cpp renames, reorders and splits weights, so a layer is looked up by the sum of its squares, which none of
    that changes: alone, or as the sum over the q, k and v or gate and up of one block that it was split into.

    Args:
        model: File of the language model.
        projector: File of the vision tower.
        weight_squares: By layer, the sum of squares of its merged weight.
        tolerance: Relative difference that storing may make.
        may_lack: Share of the layers that may be left out: a vision layer whose output no language model reads.

    Raises:
        DataError: A file is missing or no GGUF, there is no vision tower in it, or a trained layer is not.
    """
    for path in (model, projector):
        if not path.is_file():
            raise DataError(f"llama.cpp's converter wrote no {path.name}")
    tensors, vision = _tensors(model), _tensors(projector)
    architecture = _field(model, "general.architecture")
    if not _field(projector, "clip.has_vision_encoder"):
        raise DataError(f"{projector.name}: has no vision encoder: the export would be blind")
    blocks = {match[1] for name in vision if (match := re.match(r"v\.blk\.(\d+)\.", name))}
    if not blocks:
        raise DataError(f"{projector.name}: no layer of the vision tower is in it: the export would be blind")
    sums = _candidate_sums(tensors) + _candidate_sums(vision)
    lost = [
        name for name, value in weight_squares.items() if not any(abs(s - value) <= tolerance * value for s in sums)
    ]
    if len(lost) > may_lack * len(weight_squares):
        raise DataError(
            f"{len(lost)} of {len(weight_squares)} trained layers are not in the GGUF files as merged, "
            f"the first is {lost[0]}"
        )
    return GgufFiles(
        model=model.name,
        projector=projector.name,
        architecture=str(architecture),
        model_tensors=len(tensors),
        projector_tensors=len(vision),
        vision_blocks=len(blocks),
        trained_layers=len(weight_squares),
        trained_layers_found=len(weight_squares) - len(lost),
    )


def _candidate_sums(tensors: Mapping[str, float]) -> list[float]:
    """Sums of squares of single tensors, and of those that a fused layer is split into."""
    sums = list(tensors.values())
    for name, value in tensors.items():
        for first, others in (("attn_q.", ("attn_k.", "attn_v.")), ("ffn_gate.", ("ffn_up.",))):
            parts = [tensors.get(name.replace(first, other)) for other in others]
            if first in name and all(part is not None for part in parts):
                sums.append(value + sum(part for part in parts if part is not None))
    return sums


def _reader(path: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise DataError(f"{path.name}: not a readable GGUF file: {error}") from error


def _field(path: Path, name: str) -> Any:
    field = _reader(path).get_field(name)
    return None if field is None else field.contents()


def _tensors(path: Path) -> dict[str, float]:
    """Sum of squares of every tensor of a file, in float64."""
    import numpy as np
    from gguf.quants import dequantize

    found = {}
    for tensor in _reader(path).tensors:
        rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        step = max(1, _CHUNK_VALUES // max(rows.shape[-1], 1))
        total = 0.0
        for start in itertools.count(0, step):
            if start >= len(rows):
                break
            values = dequantize(rows[start : start + step], tensor.tensor_type).astype(np.float64).ravel()
            total += float(values @ values)
        found[tensor.name] = total
    return found
