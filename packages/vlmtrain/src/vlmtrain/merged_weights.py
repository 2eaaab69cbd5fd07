"""Whether a merged model's weights are the base's plus the adapter's, looked at weight by weight.

Logits on a few rows cannot tell a lost adapter from a well-merged one when training changed little, or a vision
adapter that those rows hardly use. So of every adapted layer some weights are computed here and found again there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from vlmdata.errors import DataError
from vlmtrain.layers import part_of

__all__ = ["MergedWeights", "WeightSample", "compare_weights", "sample_merged_weights", "sum_squares"]

_WEIGHTS_A_LAYER = 512
# bfloat16 keeps 8 significant bits, so that one rounding moves a value by up to 2^-8 of it; merging rounds twice, the
# base's weight (which may be stored in more bits) or the change, and then the sum.
_ROUNDING = 2.0**-7


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSample:
    """Some weights of one adapted layer as they must stand after merging."""

    positions: Any
    """`(W,)` flat positions in the layer's weight."""
    expected: Any
    """`(W,)` float32, base plus adapter."""
    change: Any
    """`(W,)` float32, the adapter's part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedWeights:
    """What was found again."""

    layers: int
    """Adapted layers."""
    changed_layers: int
    """Layers in which the adapter's part survives rounding, so that a lost adapter would be seen."""
    wrong_layers: tuple[str, ...]
    """Layers in which a weight is off by more than rounding."""
    by_part: dict[str, int]
    """Adapted layers in vision tower, connector and language model."""

    def to_json(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)


def sample_merged_weights(model: Any) -> dict[str, WeightSample]:
    """Computes some weights of every adapted layer, and of every module trained in full, as they must stand in the end.

    Args:
        model: A peft model on an unquantised base.

    Returns:
        Samples by the layer's name in the base model; by the parameter's where it is not called `weight`.
    """
    import torch
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    generator = torch.Generator().manual_seed(0)
    samples: dict[str, WeightSample] = {}
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and module.active_adapters:
            before = module.get_base_layer().weight.detach().float()
            samples[name] = _sample(before, _with_adapters(module, before), generator)
        elif isinstance(module, ModulesToSaveWrapper):
            originals = dict(module.original_module.named_parameters())
            for part, trained in module.modules_to_save[module.active_adapters[0]].named_parameters():
                samples[f"{name}.{part}".removesuffix(".weight")] = _sample(
                    originals[part].detach().float(), trained.detach().float(), generator
                )
    return samples


def _with_adapters(module: Any, weight: Any) -> Any:
    """A layer's weight with its adapters, `(O, I)`.

    DoRA's is the sum's direction with a learned length of each row (Liu et al., arXiv 2402.09353, equation 5).
    """
    total = weight + sum(module.get_delta_weight(adapter).float() for adapter in module.active_adapters)
    for adapter in module.active_adapters:
        if module.use_dora.get(adapter):
            magnitude = module.lora_magnitude_vector[adapter].weight.detach().float()
            total = total * (magnitude / total.norm(dim=1))[:, None]
    return total


def _sample(before: Any, after: Any, generator: Any) -> WeightSample:
    import torch

    positions = torch.randint(before.numel(), (_WEIGHTS_A_LAYER,), generator=generator)
    expected = after.flatten().cpu()[positions]
    return WeightSample(positions=positions, expected=expected, change=expected - before.flatten().cpu()[positions])


def compare_weights(samples: dict[str, WeightSample], merged: Any) -> MergedWeights:
    """Finds sampled weights again in a merged model.

    Args:
        samples: From the trained model.
        merged: The exported model, without adapters.

    Raises:
        DataError: A layer is missing, or weights are off by more than rounding.
    """
    modules = dict(merged.named_modules())
    wrong = []
    changed = 0
    for name, sample in samples.items():
        owner, _, parameter = name.rpartition(".")
        weight = modules[name].weight if name in modules else getattr(modules.get(owner), parameter, None)
        if weight is None:
            raise DataError(f"the export has no layer {name}, which was adapted")
        actual = weight.detach().flatten().cpu()[sample.positions].float()
        rounding = _ROUNDING * (sample.expected.abs() + sample.change.abs())
        if bool(((actual - sample.expected).abs() > rounding).any()):
            wrong.append(name)
        changed += bool((sample.change.abs() > rounding).any())
    found = MergedWeights(
        layers=len(samples),
        changed_layers=changed,
        wrong_layers=tuple(wrong),
        by_part=dict(Counter(part_of(name) for name in samples)),
    )
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(samples)} adapted layers are not merged as trained, the first is {wrong[0]}"
        )
    return found


def sum_squares(model: Any, layers: Collection[str] | None) -> dict[str, float]:
    """The sum of squares of linear layers' weights as they are stored in 16 bit.

    The output head is left out, and what is no linear layer: converters pad vocabularies and add one to norms.

    Args:
        model: A merged model, without adapters.
        layers: Names; None for every linear layer.

    Returns:
        In float64, by layer.
    """
    import torch

    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or part_of(name) == "head":
            continue
        if layers is None or name in layers:
            weight = module.weight.detach().flatten()
            found[name] = sum(float(part.double().square().sum()) for part in weight.split(1 << 24))
    return found
