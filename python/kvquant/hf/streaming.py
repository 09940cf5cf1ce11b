"""What attention sees in a transformers model, layer by layer: all samples through one layer, then
all through the next. Memory holds the residuals of all samples and one layer's activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvquant.hf.attach import decoder_of, is_patched
from kvquant.hf.shape import ModelShape


@dataclass(frozen=True)
class LayerActivations:
    """Float32 on the CPU, [num_samples * seq_len, heads, head_dim]; queries and keys before RoPE.

    output_weight: of the output projection, [hidden, num_q_heads * head_dim].
    """

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    output_weight: torch.Tensor


class _Stop(Exception):  # noqa: N818  (it ends a pass, nothing is wrong)
    pass


def sides_of(attention: Any) -> dict[str, torch.nn.Module]:
    """The modules whose outputs are queries and keys before RoPE, and values."""
    if not hasattr(attention, "q_proj"):
        raise ValueError(
            f"a {type(attention).__name__} projects queries, keys and values in one; activations "
            "are collected from q_proj, k_proj and v_proj"
        )
    return {
        "queries": getattr(attention, "q_norm", attention.q_proj),
        "keys": getattr(attention, "k_norm", attention.k_proj),
        "values": attention.v_proj,
    }


@torch.no_grad()
def stream_layers(model: Any, samples: Sequence[Sequence[int]]) -> Iterator[LayerActivations]:
    """All layers, from the first one on; samples are token ids of one length."""
    if is_patched(model):
        raise ValueError("the model is patched: unpatch() it, or compressed values would be fitted")
    base: Any = decoder_of(model)
    shape = ModelShape.of(model.config)
    ids = [torch.tensor([list(sample)], device=model.device) for sample in samples]
    arguments = _arguments_of_layers(base, ids[0])
    residuals = [_input_of_first_layer(base, sample) for sample in ids]
    for layer, (rest, options) in zip(base.layers, arguments, strict=True):
        outputs: dict[str, list[torch.Tensor]] = {"queries": [], "keys": [], "values": []}
        handles = [
            module.register_forward_hook(_gatherer(outputs[side], shape.head_dim))
            for side, module in sides_of(layer.self_attn).items()
        ]
        try:
            for index, residual in enumerate(residuals):
                out = layer(residual, *rest, **options)
                residuals[index] = out[0] if isinstance(out, tuple) else out
        finally:
            for handle in handles:
                handle.remove()
        sides = {side: torch.cat(chunks) for side, chunks in outputs.items()}
        yield LayerActivations(
            **sides, output_weight=layer.self_attn.o_proj.weight.detach().float().cpu()
        )


def _gatherer(chunks: list[torch.Tensor], head_dim: int) -> Any:
    def gather(_module: Any, _args: Any, output: torch.Tensor) -> None:
        chunks.append(output.detach().float().cpu().reshape(output.shape[1], -1, head_dim))

    return gather


def _arguments_of_layers(base: Any, ids: torch.Tensor) -> list[tuple[tuple[Any, ...], Any]]:
    """What each layer is called with beside the residual: the same for all samples of a length."""
    calls: list[tuple[tuple[Any, ...], Any]] = []

    def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        options = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        calls.append((args[1:], options))

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in base.layers]
    try:
        base(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _input_of_first_layer(base: Any, ids: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []

    def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])
        raise _Stop

    handle = base.layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        base(ids, use_cache=False)
    except _Stop:
        pass
    finally:
        handle.remove()
    return found[0]
