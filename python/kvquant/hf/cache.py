"""CompressedDynamicCache: a transformers Cache whose keys and values are compressed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache

from kvquant._core import CacheSpec, KvCache, check_spec_fits
from kvquant.hf.attach import attach
from kvquant.hf.calibrated import check_calibration_exists
from kvquant.hf.compressors import Compressor
from kvquant.hf.fingerprint import check_fits
from kvquant.hf.layers import CompressorLayer, EngineLayer
from kvquant.hf.rope import Rope
from kvquant.hf.shape import AFTER_ROPE, BEFORE_ROPE, ModelShape
from kvquant.hf.store import Store

if TYPE_CHECKING:
    from kvquant._types import Array

PathLike = str | os.PathLike[str]


class CompressedDynamicCache(Cache):
    """For generate(past_key_values=cache) and forward passes: compressed from the first token on.

    from_spec makes one of the engine's formats. The constructor makes one of compressors, Python
    objects (compressors.py), one per layer and side; num_layers is for checking.
    """

    def __init__(
        self,
        k_compressors: Sequence[Compressor],
        v_compressors: Sequence[Compressor],
        num_layers: int | None = None,
    ) -> None:
        num_layers = len(k_compressors) if num_layers is None else num_layers
        for name, side in (("k_compressors", k_compressors), ("v_compressors", v_compressors)):
            if len(side) != num_layers:
                raise ValueError(f"{len(side)} {name} for {num_layers} layers")
            for compressor in side:
                if not isinstance(compressor, Compressor):
                    raise TypeError(f"{name}: a {type(compressor).__name__} is no compressor")
        pairs = zip(k_compressors, v_compressors, strict=True)
        super().__init__(layers=[CompressorLayer(key, value) for key, value in pairs])
        self._store: Store | None = None
        self.spec: CacheSpec | None = None
        self.mode = "strict"
        self.fused = False

    @classmethod
    def from_spec(
        cls,
        model_or_config: Any,
        spec: str | CacheSpec = "nuq3-1%",
        *,
        calibration: PathLike | None = None,
        mode: str = "as-served",
        fused: bool = True,
        keys: str = BEFORE_ROPE,
        precision: str = "auto",
        num_threads: int = 0,
        scaling_factors: Array | Sequence[Array] | None = None,
    ) -> CompressedDynamicCache:
        """A cache of the engine for one model; see docs/huggingface.md.

        model_or_config: a transformers model, or its config (then attach(model) before use).
        calibration: a file of `kvquant calibrate`. mode: "as-served" or "strict". fused: attention
        reads the compressed bytes; else update() returns keys and values decoded, for any
        attention implementation. keys: "before-rope", or "after-rope", which stores them as they
        come, for models whose RoPE can't be undone: codes of keys lose some quality, and nothing
        fitted to keys before RoPE can be used. precision, num_threads: as of KvCache.
        scaling_factors: scales of
        key channels (before RoPE) in place of fitted ranges, float32 [num_kv_heads, head_dim] for
        each layer, or one for all.
        """
        is_model = isinstance(model_or_config, torch.nn.Module)
        config = model_or_config.config if is_model else model_or_config
        shape = ModelShape.of(config, keys)
        rope = Rope(config, keys, shape.head_dim)
        if calibration is not None:
            check_calibration_exists(calibration)
            check_fits(calibration, model_or_config)
        spec = spec if isinstance(spec, CacheSpec) else CacheSpec(spec)
        check_spec_fits(spec, shape.num_layers, shape.head_dim)
        if keys == AFTER_ROPE:
            _check_keys_after_rope(spec, shape.num_layers, calibration, scaling_factors)
        if fused and shape.softcap:
            raise ValueError(
                f"attn_logit_softcapping is {shape.softcap}, which the fused attention has "
                "not: fused=False works"
            )
        engine = KvCache(
            shape.num_layers,
            shape.num_kv_heads,
            shape.head_dim,
            spec,
            mode,
            frequencies=rope.frequencies.double().tolist(),
            max_positions=shape.max_positions,
            sliding_window=list(shape.windows) if fused else 0,  # else the mask does it
            calibration=calibration,
            precision=precision,
            num_threads=num_threads,
            scaling_factors=_factors_per_layer(scaling_factors, shape.num_layers),
        )
        is_exact = not fused and _is_exact(spec, shape.num_layers)
        exact = DynamicCache(config=config) if is_exact else None
        cache = cls._of_store(Store(shape, rope, engine), fused, exact)
        cache.spec, cache.mode = engine.spec, mode
        if is_model:
            attach(model_or_config)
        return cache

    @classmethod
    def _of_store(
        cls, store: Store, fused: bool, exact: DynamicCache | None = None
    ) -> CompressedDynamicCache:
        """exact: its layers keep tensors as they are, and there is no store."""
        cache = cls([], [])
        cache.fused = fused
        if exact is not None:
            cache.layers = exact.layers
            return cache
        cache._store = store
        cache.layers = [EngineLayer(store, i, fused) for i in range(store.shape.num_layers)]
        return cache

    def begin(
        self,
        config: Any,
        inputs: torch.Tensor,
        attention_mask: Any,
        position_ids: torch.Tensor | None,
    ) -> bool:
        """Called before every forward pass of an attached model; whether attention is to be fused.

        inputs [batch, seq_len] or [batch, seq_len, hidden]; ValueError when mask, positions or
        model don't fit, and nothing has changed.
        """
        if self._store is None:
            return False
        shape = ModelShape.of(config, self._store.shape.keys)
        if shape != self._store.shape:
            raise ValueError(
                f"the cache was made for another model: {self._store.shape}, not {shape}"
            )
        self._store.begin(inputs.shape[0], inputs.shape[1], attention_mask, position_ids)
        return self.fused

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends to a layer; what attention gets."""
        if layer_idx >= len(self.layers):
            raise ValueError(f"layer {layer_idx} of a cache of {len(self.layers)} layers")
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def reset(self) -> None:
        """Forgets everything."""
        if self._store is not None:
            self._store.reset()
        else:
            super().reset()  # type: ignore[no-untyped-call]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i becomes row beam_idx[i]; rows that come several times share memory."""
        if self._store is not None:
            self._store.select(beam_idx.tolist())
        else:
            super().reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times; they share memory."""
        if self._store is not None:
            self._store.select([row for row in range(len(self._store.ids)) for _ in range(repeats)])
        else:
            super().batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows of these indices, or where a mask is true."""
        if self._store is not None:
            self._store.select(torch.arange(len(self._store.ids))[indices.cpu()].tolist())
        else:
            super().batch_select_indices(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens: their number, negative. ValueError where they are compressed."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): say how many tokens to remove, negative")
        if self._store is None:
            super().crop(tokens_to_remove)
        elif tokens_to_remove < 0:
            self._store.crop(-tokens_to_remove)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompressedDynamicCache:
        """A cache that goes its own way; the engine's shares memory until one of them writes."""
        if self._store is not None:
            copy = type(self)._of_store(self._store.fork(), self.fused)
        else:
            copy = type(self)([], [])
            copy.layers = [_copy_layer(layer) for layer in self.layers]
        copy.spec, copy.mode, copy.fused = self.spec, self.mode, self.fused
        return copy

    def memory_bytes(self) -> int:
        """Allocated bytes; of the engine's cache those of all its forks, what they share once."""
        if self._store is not None:
            self._store.settle()
            return self._store.engine.memory_bytes()
        return sum(_layer_bytes(layer) for layer in self.layers)

    def num_compressed_tokens(self) -> int:
        """Tokens that the last queries read in compressed form, in the row with most."""
        if self._store is None:
            return 0 if self.spec is not None else self.get_seq_length()
        return max(map(self._store.engine.num_compressed_tokens, self._store.ids), default=0)


def _factors_per_layer(
    factors: Array | Sequence[Array] | None, num_layers: int
) -> list[Array] | None:
    if factors is None:
        return None
    if isinstance(factors, (torch.Tensor, np.ndarray)) and factors.ndim == 2:
        return [factors] * num_layers
    return list(factors)


def _codecs(spec: CacheSpec, num_layers: int) -> set[str]:
    return {side(layer) for side in (spec.key_of, spec.value_of) for layer in range(num_layers)}


def _is_exact(spec: CacheSpec, num_layers: int) -> bool:
    return _codecs(spec, num_layers) == {"fp16"}


def _check_keys_after_rope(
    spec: CacheSpec, num_layers: int, calibration: PathLike | None, scaling_factors: Any
) -> None:
    if scaling_factors is not None:
        raise ValueError("scaling_factors are of keys before RoPE; keys='after-rope' has none")
    plain = all(spec.key_of(layer) in ("fp16", "bf16", "fp32") for layer in range(num_layers))
    if calibration is not None and not plain:
        raise ValueError(
            "calibrations are of keys before RoPE; with keys='after-rope' they can be used where "
            "keys aren't coded (k=fp16)"
        )
    if any(spec.key_of(layer).startswith(("pca", "lnns")) for layer in range(num_layers)):
        raise ValueError("low-rank keys need the model's RoPE; keys='after-rope' has none")


def _layer_bytes(layer: Any) -> int:
    if isinstance(layer, CompressorLayer):
        return layer.memory_bytes()
    return layer.keys.nbytes + layer.values.nbytes if layer.is_initialized else 0


def _copy_layer(layer: Any) -> Any:
    """Tensors are replaced, never written to: a shallow copy is a copy."""
    copy = object.__new__(type(layer))
    copy.__dict__.update(layer.__dict__)
    return copy
