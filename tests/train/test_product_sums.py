"""Products added in place by what inductor compiles: the same numbers, only where nothing reads what was there, and
whatever torch's cache holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# In a process of its own: inductor keeps what it was taught. Prints how many calls add in place, how many do not, and
# how far compiled results and gradients are from uncompiled ones.
PROGRAM = """
import json
import re
import sys

from vlmtrain.quiet import mark_compiled_graphs

taught = sys.argv[1] == "taught"
if taught:
    mark_compiled_graphs()  # torch reads it when it is imported

import torch
from torch._inductor.utils import run_and_get_code

from vlmtrain.speed.product_sums import add_products_in_place

ROWS, WIDTH, INNER, RANK = 6, 16, 24, 4


def adapted(states, layer, down, up):
    given = states @ layer
    return torch.addmm(given, states @ down, up, alpha=2.0), given


def mlp(states, gate, up, down):
    # two sums that the backward pass needs, and one that nothing needs; states get four gradients, summed three times
    inner = torch.nn.functional.silu(adapted(states, *gate)[0]) * adapted(states, *up)[0]
    return adapted(inner, *down)[0]


def read_later(states, gate, up, down):
    return sum(each.sin() for each in adapted(states, *gate))


def with_bias(states, gate, up, down):
    return torch.addmm(gate[0][0], states @ gate[1], gate[2])


def into_an_argument(states, gate, up, down):
    return torch.addmm(states, states @ down[0].T @ down[1], down[2])


def compare(function):
    torch.manual_seed(0)
    sizes = [(WIDTH, INNER), (WIDTH, INNER), (INNER, WIDTH)]
    layers = [[torch.randn(i, o), torch.randn(i, RANK), torch.randn(RANK, o)] for i, o in sizes]
    states = torch.randn(ROWS, WIDTH)
    leaves = [states, *(each for layer in layers for each in layer[1:])]

    def run(function):
        for leaf in leaves:
            leaf.grad = None
            leaf.requires_grad_()
        out = function(states, *layers)
        out.square().sum().backward()
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    plain = run(function)
    compiled, code = run_and_get_code(run, torch.compile(function, fullgraph=True))
    apart = max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(plain, compiled, strict=True))
    calls = re.findall(r"extern_kernels\\.addmm\\((.+), out=(\\w+)\\)", "".join(code))
    in_place = sum(arguments.startswith(written + ",") for arguments, written in calls)
    return in_place, len(calls) - in_place, apart


if taught:
    with torch._inductor.config.patch(cpp_wrapper=True):
        assert not add_products_in_place()
    assert add_products_in_place()
    assert add_products_in_place()  # once is enough, twice does no harm
print(json.dumps({each.__name__: compare(each) for each in (mlp, read_later, with_bias, into_an_argument)}))
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int, float]]:
    """What a process found that was taught, over the graphs in torch's cache of one that was not."""
    folder = tmp_path_factory.mktemp("products")
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}

    def run(way: str) -> dict[str, tuple[int, int, float]]:
        command = [sys.executable, "program.py", way]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    assert not any(in_place for in_place, *_ in run("untaught").values())
    return run("taught")


@pytest.mark.parametrize(
    ("function", "in_place", "copied"),
    [("mlp", 7, 0), ("read_later", 1, 1), ("with_bias", 0, 1), ("into_an_argument", 0, 2)],
)
def test_a_product_is_added_in_place_where_nothing_reads_what_was_there(
    function: str, in_place: int, copied: int, compared: dict[str, tuple[int, int, float]]
) -> None:
    *calls, apart = compared[function]
    assert calls == [in_place, copied]
    assert apart < 1e-5
