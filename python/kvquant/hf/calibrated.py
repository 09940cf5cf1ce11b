"""Compressors from a file of `kvquant calibrate`: its principal components (docs/formats.md)."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from kvquant._core import FormatError
from kvquant.hf.compressors import Compressor, IdentityCompressor, LowRankCompressor

# Where the mean and the components of a side stand; keys after RoPE.
FIELDS = {"k": ("key.rotated_mean", "key.basis"), "v": ("value.mean", "value.basis")}
TARGETS = ("v", "k", "kv")


def load_calibrated_compressors(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    quantize_bits: int | None = None,
    *,
    rank: int | None = None,
    target: str = "v",
) -> tuple[list[Compressor], list[Compressor], dict[str, Any]]:
    """(compressors of keys, of values, metadata), one for each layer.

    quantize_bits: 8 or 4 bits for a coordinate, None for fp16. rank: the first so many components,
    by default all of the file. target: the sides that are compressed, "v", "k" or "kv"; the others
    are kept as they are. metadata: the file's, with num_layers, head_dim, num_kv_heads as numbers,
    rank, target and quantize_bits.
    """
    _check(path, quantize_bits, target)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata: dict[str, Any] = dict(file.metadata() or {})
            if metadata.get("format") != "kvquant-calibration":
                raise FormatError(f"{path}: format is {metadata.get('format')!r}, no calibration")
            for name in ("num_layers", "head_dim", "num_kv_heads"):
                metadata[name] = int(metadata[name])
            layers = range(metadata["num_layers"])
            sides: dict[str, list[Compressor]] = {
                side: [_of_layer(file, path, i, side, rank, quantize_bits) for i in layers]
                if side in target
                else [IdentityCompressor() for _ in layers]
                for side in FIELDS
            }
    except SafetensorError as error:
        raise FormatError(f"{path}: {error}") from error
    low = next(c for side in sides.values() for c in side if isinstance(c, LowRankCompressor))
    metadata |= {"rank": low.basis.shape[1], "target": target, "quantize_bits": quantize_bits}
    return sides["k"], sides["v"], metadata


def check_calibration_exists(path: str | os.PathLike[str]) -> None:
    """FileNotFoundError, in words that say what to do."""
    if not Path(path).exists():
        raise FileNotFoundError(
            f"Calibration file not found: {path} (give the full path of a file that `kvquant "
            "calibrate` wrote, in a preset as its calibration_file)"
        )


def _check(path: str | os.PathLike[str], quantize_bits: int | None, target: str) -> None:
    check_calibration_exists(path)
    if quantize_bits not in (None, 4, 8):
        raise ValueError(f"quantize_bits is {quantize_bits}, not 8, 4 or None")
    if target not in TARGETS:
        raise ValueError(f"target is {target!r}, not one of {', '.join(TARGETS)}")
    if "k" in target:
        warnings.warn("low-rank keys cost more quality than low-rank values", stacklevel=3)


def _of_layer(
    file: Any,
    path: str | os.PathLike[str],
    layer: int,
    side: str,
    rank: int | None,
    quantize_bits: int | None,
) -> LowRankCompressor:
    mean, basis = (f"layers.{layer}.{field}" for field in FIELDS[side])
    if basis not in file.keys():  # noqa: SIM118  (it is no mapping)
        raise FormatError(
            f"{path}: it has no {basis}; calibrations beside presets hold what their spec needs"
        )
    components = file.get_tensor(basis).float()
    available = components.shape[1]
    if rank is not None and not 1 <= rank <= available:
        raise ValueError(f"rank is {rank}, and the file holds components 1 to {available}")
    return LowRankCompressor(
        file.get_tensor(mean).float(), components[:, :rank].contiguous(), quantize_bits
    )
