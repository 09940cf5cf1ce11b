"""Models from Hugging Face directories and GGUF files, plain or with compressed caches."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvquant._core import find_model
from kvquant.hf.wrapper import QuantizedModelWrapper


def load_model(
    path: str | os.PathLike[str] = "embedded", *, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """(transformers model in eval mode, tokenizer) of a local model.

    path: a Hugging Face directory, a GGUF file of an architecture that transformers reads (that
    needs the packages gguf and accelerate; weights are widened to dtype), "smollm2" or "embedded".
    """
    place = Path(find_model(str(path)))
    checkpoint = str(place)
    options: dict[str, Any] = {"local_files_only": True}
    if place.is_file():
        options["gguf_file"], place = place.name, place.parent
    model: Any = AutoModelForCausalLM.from_pretrained(str(place), dtype=dtype, **options)
    tokenizer = AutoTokenizer.from_pretrained(str(place), **options)
    model.kvquant_path = checkpoint  # where its fingerprint is found
    return model.eval(), tokenizer


def load_quantized_model(
    path: str | os.PathLike[str] = "embedded",
    quantization: str = "nuq3-1%",
    *,
    sparsity: float | None = None,
    prefill_quant: bool = True,
    block_size: int | None = None,
    **options: Any,
) -> QuantizedModelWrapper:
    """A model whose attention reads compressed keys and values, patched: .model, .generate().

    quantization: a cache spec. sparsity: the fraction of outliers instead of the spec's, which has
    to be a nuq codec alone: 0.01.
    block_size: tokens of a block. prefill_quant: has to be True, the engine compresses from the
    first token on. options: those of QuantizedModelWrapper, and dtype.
    """
    if not prefill_quant:
        raise ValueError("prefill_quant is False, but prompts are always compressed")
    spec = quantization if sparsity is None else _with_sparsity(quantization, sparsity)
    spec += "" if block_size is None else f",block={block_size}"
    dtype = options.pop("dtype", torch.float32)
    wrapper = QuantizedModelWrapper(load_model(path, dtype=dtype)[0], spec, **options)
    wrapper.patch()
    return wrapper


def _with_sparsity(codec: str, sparsity: float) -> str:
    plain = re.fullmatch(r"(nuq[234])(-[\d.]+%)?", codec)
    if plain is None:
        raise ValueError(f"sparsity is for nuq2, nuq3 and nuq4, not for {codec}")
    return f"{plain[1]}-{100 * sparsity:g}%" if sparsity else plain[1]
