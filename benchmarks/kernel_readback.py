"""Kernels of torch's compiler that read back what other threads have written, found without a GPU.

    TMPDIR=DIR python benchmarks/compiled_gradients.py --work WORK     # on a GPU, torch before 2.14; DIR is there
    python benchmarks/kernel_readback.py DIR                   # anywhere, with that torch's Triton

Inductor leaves its kernels in DIR (Unsloth takes TORCHINDUCTOR_CACHE_DIR out of the environment). Those that write a
buffer in a loop and read it in a later one are compiled for the GPU that they were made for, as far as Triton's choice
of which thread takes which element. Where a buffer's reader has another layout than its writer, and no barrier lies
between, a thread may read before the other has written.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

WARP = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--channels", type=int, nargs=2, metavar=("FROM", "TO"), help="as if rows had another length")
    options = parser.parse_args()
    print(f"Triton {triton.__version__}")
    kernels = sorted(set(find_kernels(options.folder)))
    readers = [(name, source) for name, source in kernels if reads_back(source)]
    for name, source in readers:
        if options.channels is not None:
            source = resize(source, *options.channels)
        for block, warps, buffer, writer, reader, waits in compare_layouts(source):
            verdict = "after a barrier" if waits else "by the same threads" if writer == reader else "BY OTHERS"
            print(f"{name}\n    {block}, {warps} warps: {buffer} is read {verdict}\n        {writer}\n        {reader}")
    print(f"{len(readers)} of {len(kernels)} looped kernels read back what they have written")


def find_kernels(folder: Path) -> Iterator[tuple[str, str]]:
    """Names and sources of the looped reductions in inductor's cache."""
    for path in sorted(folder.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        found = re.search(r"^def (triton_red_\w+)\(", source, re.MULTILINE)
        if found and "@triton_heuristics.reduction(" in source and "def call(" not in source:
            yield found[1], source


def reads_back(source: str) -> bool:
    """Whether a loop reads what an earlier one has written."""
    written: set[str] = set()
    for loop in source.split("for r0_offset in")[1:]:
        if written & set(re.findall(r"tl\.load\((\w+) \+", loop)):
            return True
        written |= set(re.findall(r"tl\.store\((\w+) \+", loop))
    return False


def resize(source: str, before: int, after: int) -> str:
    """The kernel for rows of another length, and halves of them likewise."""
    head, mark, body = source.partition("@triton.jit")
    head = head.replace(f"'r0_': {before}}}", f"'r0_': {after}}}", 1)
    sizes = {factor * before // 2: factor * after // 2 for factor in (1, 2, 8, 16)}
    return head + mark + re.sub(r"\b\d+\b", lambda number: str(sizes.get(int(number[0]), number[0])), body)


def compare_layouts(source: str) -> Iterator[tuple[dict[str, int], int, str, str, str, bool]]:
    """For each of a kernel's configurations its blocks and warps, and what `read_backs` finds."""
    from torch._inductor.runtime import triton_heuristics

    function, meta = load_kernel(source)
    described = meta["triton_meta"]
    signature = described["signature"]
    names = list(signature)
    settings = meta["inductor_meta"] | {"reduction_hint": meta["reduction_hint"]}
    configurations = triton_heuristics._reduction_configs(
        size_hints=meta["size_hints"], inductor_meta=settings, triton_meta=described
    )
    for configuration in configurations:
        blocks = {name: size for name, size in configuration.kwargs.items() if name in signature}
        kinds = {name: "constexpr" if name in blocks else kind for name, kind in signature.items()}
        constants = {(names.index(name),): size for name, size in blocks.items()}
        program = ASTSource(function, kinds, constexprs=constants, attrs=described["configs"][0])
        target = GPUTarget("cuda", described["device"].cc, WARP)
        compiled = triton.compile(program, target=target, options={"num_warps": configuration.num_warps})
        for found in read_backs(compiled.asm["ttgir"]):
            yield blocks, configuration.num_warps, *found


def load_kernel(source: str) -> tuple[Any, dict[str, Any]]:
    """The kernel without inductor's launcher, and what inductor says of it."""
    from torch._inductor.runtime import triton_helpers, triton_heuristics

    said: dict[str, Any] = {}

    def note(**meta: Any) -> Callable[[Any], Any]:
        said.update(meta)
        return lambda function: function

    with (
        # Triton reads a kernel's source from its file
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(triton_heuristics, "reduction", note),
        mock.patch.object(triton_helpers, "set_driver_to_gpu"),
    ):
        path = Path(folder) / "kernel.py"
        path.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("kernel", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    [function] = [value for name, value in vars(module).items() if name.startswith("triton_red")]
    return function, said


def read_backs(code: str) -> Iterator[tuple[str, str, str, bool]]:
    """In Triton's intermediate code, buffers that are read after they were written.

    Yields:
        The buffer, the layouts of its writer and its reader, and whether there is a barrier between.
    """
    layouts = dict(re.findall(r"^(#\w+) = (#ttg\..*)$", code, re.MULTILINE))
    pointers: dict[str, str] = {}
    written: dict[str, str] = {}
    waited: set[str] = set()
    for line in code.splitlines():
        if moved := re.search(r"(%\w+) = (?:tt\.splat|tt\.addptr|ttg\.convert_layout|tt\.broadcast) (%\w+)", line):
            pointers[moved[1]] = pointers.get(moved[2], moved[2])
        if "barrier" in line:
            waited |= set(written)
        access = re.search(r"tt\.(store|load) (%\w+).*!tt\.ptr<\w+>, (#\w+)>", line)
        if access is None:
            continue
        buffer, layout = pointers.get(access[2], access[2]), layouts[access[3]]
        if access[1] == "store":
            written[buffer] = layout
            waited.discard(buffer)
        elif buffer in written:
            yield buffer, written[buffer], layout, buffer in waited


if __name__ == "__main__":
    main()
