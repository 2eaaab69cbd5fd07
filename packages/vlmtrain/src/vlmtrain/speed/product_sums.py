"""Products of matrices added in place in compiled layers. Imports the compiler, which takes seconds.

An adapter adds a product to what its layer gave, `addmm`, and so do the gradients of layers that read the same states.
Inductor has each write into a new matrix, and cuBLAS, which adds to what is there, needs the sum so far copied into it:
22 of 523 ms of a step (Qwen2.5-VL-3B shape, 8 pictures of 1000×750, one H200). Inductor also finds out which operations
may write over what they read, as nothing reads it later; here `addmm` becomes one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._inductor import config, ir
from torch._inductor.fx_passes.reinplace import InplaceableOp, inplaceable_ops
from torch._inductor.lowering import register_lowering
from torch._inductor.virtualized import V
from torch.utils._ordered_set import OrderedSet

__all__ = ["add_products_in_place"]

_ADD_PRODUCT = torch.ops.aten.addmm.default
_ADD_PRODUCT_IN_PLACE = torch.ops.aten.addmm_.default


def add_products_in_place() -> bool:
    """Has all that this process compiles from now on add products in place, where inductor finds that safe.

    Graphs out of torch's cache are taken as they are (`vlmtrain.quiet.mark_compiled_graphs`).

    Returns:
        False where inductor writes C++ (`TORCHINDUCTOR_CPP_WRAPPER`), which is left as it was.
    """
    if config.cpp_wrapper:
        return False
    if _ADD_PRODUCT in inplaceable_ops:
        return True
    register_lowering(_ADD_PRODUCT_IN_PLACE, type_promotion_kind=None)(_lower)
    inplaceable_ops[_ADD_PRODUCT] = InplaceableOp(_ADD_PRODUCT_IN_PLACE, 0, extra_check=_adds_to_a_matrix)
    return True


def _adds_to_a_matrix(node: torch.fx.Node) -> bool:
    """Whether what is added to has the shape and type of the sum; a bias, one for all rows, has not."""
    matrix = node.args[0]
    assert isinstance(matrix, torch.fx.Node)
    before, after = matrix.meta["val"], node.meta["val"]
    return bool(before.shape == after.shape and before.dtype == after.dtype)


def _lower(matrix: Any, left: Any, right: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """From the operation in the graph to the call in the program."""
    _AddedProduct([matrix, left, right], beta, alpha)
    return matrix


class _AddedProduct(ir.ExternKernel):  # type: ignore[misc]  # torch is untyped here
    """The call in the program that inductor writes, which changes a matrix and returns nothing."""

    def __init__(self, matrices: Sequence[Any], beta: float, alpha: float) -> None:
        """Registers the call.

        Args:
            matrices: `(N, M)` to add to, and `(N, K)` and `(K, M)` whose product is added.
            beta: Factor of the first.
            alpha: Factor of the product.
        """
        super().__init__(
            None,
            ir.NoneLayout(device=matrices[0].get_device()),
            self.unwrap_storage([self.realize_input(matrix) for matrix in matrices]),
            kwargs={"beta": beta, "alpha": alpha},
            python_kernel_name="extern_kernels.addmm",
            op_overload=_ADD_PRODUCT_IN_PLACE,
        )
        V.graph.mark_buffer_mutated(self.input_name(0))
        self.name = V.graph.register_buffer(self)
        V.graph.register_operation(self)

    def codegen(self, wrapper: Any) -> None:
        """Writes the call."""
        matrices = [matrix.codegen_reference() for matrix in self.inputs]
        factors = [f"{name}={wrapper.val_to_arg_str(factor)}" for name, factor in self.kwargs.items()]
        wrapper.writeline(f"{self.python_kernel_name}({', '.join([*matrices, *factors])}, out={matrices[0]})")

    def should_allocate(self) -> bool:
        """No: it writes into a matrix that is there."""
        return False

    def get_mutation_names(self) -> Sequence[str]:
        """Buffers that it changes."""
        return [self.input_name(0)]

    def get_unbacked_symbol_defs(self) -> OrderedSet[Any]:
        """Sizes that only it knows: none."""
        return OrderedSet()
