"""ActivationCollector: keys before RoPE and values of a transformers model's layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kvquant.hf.attach import decoder_of
from kvquant.hf.shape import ModelShape


class ActivationCollector:
    """Gathers what passes compute between install_hooks and remove_hooks.

    A row of a batch is a sample, which passes go on with until increment_sample_count ends it; rows
    beyond max_samples are left out. Batches can't be padded.
    """

    def __init__(self, model: Any, max_samples: int = 16) -> None:
        if max_samples < 1:
            raise ValueError(f"max_samples is {max_samples}, not positive")
        self.model = model
        self.max_samples = max_samples
        self.shape = ModelShape.of(model.config)
        self._handles: list[Any] = []
        self._open: dict[tuple[str, int], list[torch.Tensor]] = {}
        self._samples: list[dict[tuple[str, int], torch.Tensor]] = []

    def install_hooks(self) -> None:
        """From now on passes are gathered; ValueError when that is so already."""
        if self._handles:
            raise ValueError("the hooks are installed already")
        base: Any = decoder_of(self.model)
        self._handles = [base.register_forward_pre_hook(_refuse_padding, with_kwargs=True)]
        for index, layer in enumerate(base.layers):
            attention = layer.self_attn
            key = getattr(attention, "k_norm", attention.k_proj)  # the last step before RoPE
            for side, module in (("k", key), ("v", attention.v_proj)):
                hook = module.register_forward_hook(self._gatherer(side, index))
                self._handles.append(hook)

    def remove_hooks(self) -> None:
        """The model is as it was; what was gathered stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def increment_sample_count(self) -> None:
        """Ends the samples that have begun."""
        if not self._open:
            return
        whole = {place: torch.cat(chunks, dim=2) for place, chunks in self._open.items()}
        for row in range(next(iter(whole.values())).shape[0]):
            if self.num_samples < self.max_samples:
                self._samples.append({place: x[row] for place, x in whole.items()})
        self._open = {}

    @property
    def num_samples(self) -> int:
        """Complete ones."""
        return len(self._samples)

    def get_keys(self, layer_idx: int) -> torch.Tensor:
        """Float32 [num_samples, num_kv_heads, seq_len, head_dim], before RoPE."""
        return self._gather("k", layer_idx)

    def get_values(self, layer_idx: int) -> torch.Tensor:
        """Float32 [num_samples, num_kv_heads, seq_len, head_dim]."""
        return self._gather("v", layer_idx)

    def _gatherer(self, side: str, layer: int) -> Callable[..., None]:
        def gather(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> None:
            if self.num_samples >= self.max_samples:
                return
            heads = output.shape[0], output.shape[1], self.shape.num_kv_heads, self.shape.head_dim
            chunk = output.detach().float().cpu().reshape(heads).transpose(1, 2)
            self._open.setdefault((side, layer), []).append(chunk)

        return gather

    def _gather(self, side: str, layer: int) -> torch.Tensor:
        if not 0 <= layer < self.shape.num_layers:
            raise ValueError(f"layer_idx is {layer}, of a model of {self.shape.num_layers} layers")
        samples = [sample[side, layer] for sample in self._samples]
        if not samples:
            raise ValueError("there is no complete sample (increment_sample_count ends them)")
        lengths = sorted({sample.shape[1] for sample in samples})
        if len(lengths) > 1:
            raise ValueError(f"samples have lengths from {lengths[0]} to {lengths[-1]}, not one")
        return torch.stack(samples)


def _refuse_padding(_module: torch.nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
    mask = kwargs.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and not bool(mask.all()):
        raise ValueError("attention_mask has padding; collect from prompts of one length")
