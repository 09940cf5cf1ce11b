"""Squared gradients of keys and values, the weights of KVQuant's codebooks (arXiv 2401.18079)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from kvquant._core import CalibrateOptions, OutOfMemory, choose_samples
from kvquant.calibration import NamedTokens, bos_of
from kvquant.hf.attach import decoder_of, is_patched
from kvquant.hf.shape import ModelShape
from kvquant.hf.streaming import sides_of


def estimate(
    model: Any,
    tokenizer: Any,
    texts: NamedTokens,
    options: CalibrateOptions,
    output: str | os.PathLike[str],
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """As kvquant.estimate_fisher, of tokens; on_progress counts samples."""
    if is_patched(model):
        raise ValueError("the model is patched: unpatch() it, compressed caches have no gradients")
    shape = ModelShape.of(model.config)
    samples, _ = choose_samples(texts, bos_of(tokenizer), options)
    width = shape.num_kv_heads * shape.head_dim
    sums = {
        f"fisher.{side}.{layer}": torch.zeros(width, dtype=torch.float64)
        for layer in range(shape.num_layers)
        for side in ("key", "value")
    }
    try:
        for done, sample in enumerate(samples, start=1):
            for name, gradient in _gradients(model, sample).items():
                squares = gradient.double().square().reshape(-1, width)
                sums[name] += squares.sum(0).cpu()
            if on_progress is not None:
                on_progress(done, len(samples))
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(str(error)) from error
    count = len(samples) * options.seq_len
    means = {name: (total / count).float().contiguous() for name, total in sums.items()}
    unfinished = Path(f"{output}.tmp")
    save_file(means, unfinished, {"format": "kvquant-fisher", "num_samples": str(len(samples))})
    unfinished.replace(output)


def _gradients(model: Any, sample: list[int]) -> dict[str, torch.Tensor]:
    """Of one sample's negative log-likelihood, by keys (before RoPE) and values of all layers."""
    base: Any = decoder_of(model)
    found: dict[str, torch.Tensor] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(_module: Any, _args: Any, out: torch.Tensor) -> None:
            found[name] = out

        return keep

    handles = []
    for index, layer in enumerate(base.layers):
        sides = sides_of(layer.self_attn)
        for name, side in (("key", "keys"), ("value", "values")):
            hook = sides[side].register_forward_hook(keeper(f"fisher.{name}.{index}"))
            handles.append(hook)
    ids = torch.tensor([sample], device=model.device)
    try:
        with torch.enable_grad():
            # Gradients pass through even where the weights want none.
            inputs = model.get_input_embeddings()(ids).detach().requires_grad_()
            logits = model(inputs_embeds=inputs, use_cache=False).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
            gradients = torch.autograd.grad(loss, list(found.values()))
    finally:
        for handle in handles:
            handle.remove()
    return dict(zip(found, gradients, strict=True))
