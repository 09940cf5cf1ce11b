"""Which model a calibration was made for: fingerprints of transformers models."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from kvquant._core import (
    FormatError,
    IoError,
    Preset,
    check_calibration_fits,
    check_preset_fits,
    find_model,
    fingerprint_of_checkpoint,
    name_of_checkpoint,
)
from kvquant.hf.shape import AFTER_ROPE, ModelShape

NUM_SAMPLED = 64  # elements of a weight
_of_weights: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()
_checked: set[tuple[str, int, str]] = set()  # calibration, its time, fingerprint


def checkpoint_of(model_or_config: Any) -> str | None:
    """Where a model was loaded from; None when there is no such place on this machine."""
    config = getattr(model_or_config, "config", model_or_config)
    place = getattr(model_or_config, "kvquant_path", None) or getattr(config, "_name_or_path", "")
    return str(place) if place and Path(place).exists() else None


def fingerprint_of(model_or_config: Any) -> str | None:
    """That of the checkpoint that the model was loaded from, as `kvquant` finds it.

    Where there is no such file, or the engine can't read it, one of the weights themselves; None
    for a config that says no place.
    """
    place = checkpoint_of(model_or_config)
    if place is not None:
        try:
            return fingerprint_of_checkpoint(find_model(place))
        except (FormatError, IoError):
            pass  # an architecture that the engine doesn't know
    is_model = isinstance(model_or_config, torch.nn.Module)
    return _weights_of(model_or_config) if is_model else None


def name_of(model_or_config: Any) -> str:
    """What presets call the model: as the engine does, or after its folder or type."""
    config = getattr(model_or_config, "config", model_or_config)
    place = checkpoint_of(model_or_config)
    if place is None:
        return str(getattr(config, "model_type", type(config).__name__))
    try:
        return name_of_checkpoint(find_model(place))
    except (FormatError, IoError):
        return Path(place).stem


def check_preset(preset: Preset, model_or_config: Any) -> None:
    """ValueError when a preset was made for another model; so far as is known which this is."""
    fingerprint = fingerprint_of(model_or_config)
    if fingerprint is None or not preset.model_fingerprint:
        return
    # A model type says nothing; the name of a checkpoint will do, as it does for the engine.
    name = name_of(model_or_config) if checkpoint_of(model_or_config) else ""
    shape = ModelShape.of(getattr(model_or_config, "config", model_or_config), AFTER_ROPE)
    check_preset_fits(preset, name, fingerprint, shape.num_layers, shape.head_dim)


def check_fits(calibration: str | os.PathLike[str], model_or_config: Any) -> None:
    """ValueError when the file was made for another model."""
    fingerprint = fingerprint_of(model_or_config)
    if fingerprint is None:
        return  # caches compare shapes
    key = (str(calibration), Path(calibration).stat().st_mtime_ns, fingerprint)
    if key in _checked:
        return
    config = getattr(model_or_config, "config", model_or_config)
    shape = ModelShape.of(config, AFTER_ROPE)  # RoPE doesn't matter here
    check_calibration_fits(
        calibration,
        fingerprint,
        shape.num_layers,
        shape.num_q_heads,
        shape.num_kv_heads,
        shape.head_dim,
    )
    _checked.add(key)


def _weights_of(model: torch.nn.Module) -> str:
    """16 hex digits of names, shapes and some elements of the weights."""
    if model not in _of_weights:
        digest = hashlib.sha256()
        for name, weight in sorted(model.state_dict().items()):
            step = max(1, weight.numel() // NUM_SAMPLED)
            some = weight.detach().flatten()[::step].float().cpu().contiguous()
            digest.update(f"{name} {list(weight.shape)}".encode())
            digest.update(some.numpy().tobytes())
        _of_weights[model] = digest.hexdigest()[:16]
    return _of_weights[model]
