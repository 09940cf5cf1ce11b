"""Calibration of transformers models: torch runs them, the engine fits."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from kvquant._core import CalibrateOptions, CalibrationFit, OutOfMemory, choose_samples
from kvquant.calibration import NamedTokens, bos_of
from kvquant.hf.fingerprint import fingerprint_of
from kvquant.hf.rope import Rope
from kvquant.hf.shape import ModelShape
from kvquant.hf.streaming import stream_layers


def calibrate(
    model: Any,
    tokenizer: Any,
    texts: NamedTokens,
    options: CalibrateOptions,
    output: str | os.PathLike[str],
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """As kvquant.calibrate, of tokens; on_progress counts layers."""
    shape, rope = ModelShape.of(model.config), Rope(model.config)
    if options.seq_len > shape.max_positions:
        raise ValueError(
            f"seq_len is {options.seq_len}, and the model's context {shape.max_positions} tokens"
        )
    if len(set(shape.windows)) > 1 and options.seq_len > min(filter(None, shape.windows)):
        raise ValueError(
            f"seq_len is {options.seq_len}, but layers differ in their sliding windows of "
            f"{min(filter(None, shape.windows))} tokens: calibrate on samples that fit into these"
        )
    if shape.softcap:
        raise ValueError(
            f"attn_logit_softcapping is {shape.softcap}: what is fitted to scores knows none"
        )
    samples, origins = choose_samples(texts, bos_of(tokenizer), options)
    fit = CalibrationFit(
        shape.num_layers,
        shape.num_q_heads,
        shape.num_kv_heads,
        shape.head_dim,
        fingerprint_of(model) or "",
        options,
        origins,
        rope.frequencies.double().tolist(),
        score_scale=shape.score_scale * rope.attention_scaling**2,
        sliding_window=shape.sliding_window,
    )
    try:
        for done, layer in enumerate(stream_layers(model, samples), start=1):
            fit.add_layer(layer.queries, layer.keys, layer.values, layer.output_weight)
            if on_progress is not None:
                on_progress(done, shape.num_layers)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(str(error)) from error
    return fit.save(output)
