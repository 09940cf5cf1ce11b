"""Presets and policies for transformers models."""

from __future__ import annotations

import os
import re
from typing import Any

import torch

from kvquant._core import CacheSpec, KVPolicyName, Model, PolicyModel, Preset, load_preset
from kvquant._core import build_compressor_config_for_policy as build_for_shape
from kvquant.hf.cache import CompressedDynamicCache
from kvquant.hf.calibrated import load_calibrated_compressors
from kvquant.hf.fingerprint import check_preset
from kvquant.hf.shape import AFTER_ROPE, BEFORE_ROPE, ModelShape

LOW_RANK = re.compile(r"pca(\d+)(?:\+(fp16|int8|int4))?")


def create_cache_from_preset(
    preset: Preset | str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    model: Any = None,
    calibration: str | os.PathLike[str] | None = None,
    **options: Any,
) -> CompressedDynamicCache:
    """The cache of a preset (or its file), for generate(past_key_values=cache).

    model: the transformers model, or its config, whose cache it is to be; the engine's formats need
    it, and options are those of CompressedDynamicCache.from_spec. Without it only low-rank presets
    work, as compressors on `device`. calibration: instead of the preset's own file.
    """
    if not isinstance(preset, Preset):
        preset = load_preset(preset)
    file = calibration or preset.calibration_path or preset.calibration_file or None
    if model is None:
        return _of_compressors(preset, device, file)
    config = model.config if isinstance(model, torch.nn.Module) else model
    shape = ModelShape.of(config, options.get("keys", BEFORE_ROPE))
    for name in ("num_layers", "head_dim"):
        ours, theirs = getattr(shape, name), getattr(preset, name)
        if theirs and ours != theirs:
            raise ValueError(
                f"the preset is for another model, {preset.model}: its {name} is {theirs}, the "
                f"model's {ours}"
            )
    check_preset(preset, model)
    return CompressedDynamicCache.from_spec(model, preset.spec, calibration=file, **options)


def _of_compressors(
    preset: Preset, device: str | torch.device, file: str | os.PathLike[str] | None
) -> CompressedDynamicCache:
    spec = CacheSpec(preset.spec)
    sides = {"k": spec.key, "v": spec.value}
    ranks = {side: LOW_RANK.fullmatch(codec) for side, codec in sides.items() if codec != "fp16"}
    found = {match.groups() for match in ranks.values() if match}
    if None in ranks.values() or len(found) != 1 or "layers=" in preset.spec:
        raise ValueError(
            f"the preset's spec is {preset.spec}: it needs model=, as of a low-rank one"
        )
    if file is None:
        raise FileNotFoundError(
            f"Calibration file not found: the preset {preset.name} names none (`kvquant calibrate "
            "-m MODEL -o FILE` makes one; give its full path as calibration=, or as "
            "calibration_file in the preset)"
        )
    rank, quantizer = found.pop()
    bits = {"int8": 8, "int4": 4}.get(quantizer or "fp16")
    target = "".join(side for side in "kv" if side in ranks)
    keys, values, _ = load_calibrated_compressors(file, device, bits, rank=int(rank), target=target)
    return CompressedDynamicCache(keys, values, len(keys))


def policy_model(config: Any) -> PolicyModel:
    """What of a transformers config decides the size of its cache; weight_bytes not known."""
    shape = ModelShape.of(config, AFTER_ROPE)  # RoPE doesn't matter here
    return PolicyModel(
        shape.num_layers,
        shape.num_kv_heads,
        shape.head_dim,
        max_context=shape.max_positions,
        sliding_window=shape.sliding_window,
    )


def build_compressor_config_for_policy(
    config: Any, model_id: str, policy_name: KVPolicyName | str
) -> dict[str, Any]:
    """As kvquant's, for a transformers config as well: what a policy stores for a model."""
    shape = config if isinstance(config, (PolicyModel, Model)) else policy_model(config)
    return build_for_shape(shape, model_id, policy_name)
