"""A merged model in bitsandbytes' 4-bit form: small to pass on and to load, and no longer exactly the trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmtrain.layers import part_of

__all__ = ["WARNING", "quantise_folder", "unquantised_modules"]

WARNING = (
    "4-bit weights are rounded a second time after merging: the export is not exactly the trained model. "
    "Where memory allows, pass merged_16bit on and let the user choose the precision when loading"
)


def quantise_folder(merged: Path, out: Path, *, dtype: Any, trust_remote_code: bool = False) -> None:
    """Writes a merged 16-bit model with its language model in NF4, as both backends train in 4 bit.

    Args:
        merged: Folder of the whole model.
        out: Folder to write to.
        dtype: Of what is not quantised, and of the products.
        trust_remote_code: Run Python code that comes with the model.

    Raises:
        OSError: It cannot be written.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

    config = AutoConfig.from_pretrained(merged, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        shape = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # plain names: other programs that load the export do not read them as expressions
        llm_int8_skip_modules=unquantised_modules(shape),
    )
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    model = AutoModelForImageTextToText.from_pretrained(
        merged,
        dtype=dtype,
        quantization_config=quantisation,
        device_map={"": device},
        trust_remote_code=trust_remote_code,
    )
    model.save_pretrained(out)


def unquantised_modules(model: Any) -> list[str]:
    """The outermost modules that lie outside the language model: vision tower, connector and output head."""
    found: list[str] = []
    for name, _ in model.named_modules():
        if name and part_of(name) != "language" and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found
