"""Tuning of transformers models: torch measures candidates, the engine chooses (eval/tune.h)."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvquant._core import (
    CacheSpec,
    CalibrateOptions,
    Preset,
    TuneTexts,
    round_calibration,
    spec_warnings,
    tune_candidates,
    tune_with,
)
from kvquant.calibration import DEFAULT_SEQ_LEN, NamedTokens, bos_of
from kvquant.hf.calibrated import check_calibration_exists
from kvquant.hf.calibration import calibrate
from kvquant.hf.fingerprint import check_fits, fingerprint_of, name_of
from kvquant.hf.perplexity import evaluate_windows
from kvquant.hf.shape import ModelShape

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class TuneOptions:
    """Those of `kvquant tune`, of the same names."""

    target_ppl_delta: float = 0.05
    target: str = "v"
    rank_grid: Sequence[int | str] = ()
    bits_options: Sequence[int] = ()
    codecs: Sequence[str] = ()
    kv: Sequence[str | CacheSpec] = ()
    sink: int | None = None
    recent: int | None = None
    windows: int = 8
    test_windows: int = 8
    calib: PathLike | None = None
    samples: int = 16
    seq_len: int = 0
    ctx: int = 0
    ubatch: int = 512
    seed: int = 42
    name: str = ""


@dataclass(frozen=True)
class _Files:
    preset: Path

    @property
    def log(self) -> Path:
        return self.preset.with_suffix(".tune.jsonl")

    @property
    def calibration(self) -> Path:
        return self.preset.with_suffix(".tune.safetensors")


def tune(
    model: Any,
    tokenizer: Any,
    texts: NamedTokens,
    test: NamedTokens,
    options: TuneOptions,
    output: PathLike,
) -> Preset:
    """As kvquant.tune, of tokens; test: a text for the last measurement, or []."""
    shape, files = ModelShape.of(model.config), _Files(Path(output))
    if not files.preset.parent.is_dir():
        raise FileNotFoundError(f"output is {output}, and its folder doesn't exist")
    bos = bos_of(tokenizer)
    prefix = [] if bos < 0 else [bos]
    window = _tokens_of_window(options.ctx, shape.max_positions)
    how = CalibrateOptions(
        samples=options.samples,
        seq_len=options.seq_len or min(DEFAULT_SEQ_LEN, shape.max_positions),
        seed=options.seed,
        ubatch=options.ubatch,
    )
    specs = _candidates(options, shape)
    if options.calib is not None:
        check_calibration_exists(options.calib)
        check_fits(options.calib, model)
    split = TuneTexts(
        texts,
        test,
        options.calib,
        window_tokens=window - len(prefix),
        windows=options.windows,
        test_windows=options.test_windows,
        calibration_tokens=how.seq_len - len(prefix),
    )
    whole = options.calib or _calibrated(model, tokenizer, split, how, files.calibration, prefix)
    with tempfile.TemporaryDirectory() as folder:
        rounded = Path(folder, "rounded.safetensors")
        round_calibration(whole, rounded)

        def measure(tokens: list[int], which: list[CacheSpec]) -> list[dict[str, Any]]:
            at = [([*prefix, *tokens], 1)]
            return evaluate_windows(model, at, which, "strict", options.ubatch, rounded)

        return tune_with(
            measure,
            split,
            specs,
            model=name_of(model),
            fingerprint=fingerprint_of(model) or "",
            shape=(shape.num_layers, shape.num_kv_heads, shape.head_dim),
            name=options.name or files.preset.stem,
            target_ppl_delta=options.target_ppl_delta,
            window=window,
            num_bos=len(prefix),
            run=f"transformers {model.dtype} {model.device.type}",
            calibration=rounded,
            log=files.log,
            output=files.preset,
        )


def _tokens_of_window(ctx: int, context: int) -> int:
    window = ctx or min(DEFAULT_SEQ_LEN, context)
    if not 2 <= window <= context:
        raise ValueError(f"ctx is {ctx}, not in [2, {context}], the model's context")
    return window


def _candidates(options: TuneOptions, shape: ModelShape) -> list[CacheSpec]:
    has_ranks = list(options.rank_grid) != ["none"]
    for rank in options.rank_grid if has_ranks else ():
        if not isinstance(rank, int):
            raise ValueError(f"rank_grid has {rank!r}, neither a rank nor ('none',) alone")
    specs = tune_candidates(
        shape.num_layers,
        shape.head_dim,
        options.target,
        [int(rank) for rank in options.rank_grid] if has_ranks else [],
        list(options.bits_options or (16, 8, 4)) if has_ranks else [],
        list(options.codecs),
        [str(spec) for spec in options.kv],
        options.sink,
        options.recent,
    )
    for message in dict.fromkeys(text for spec in specs for text in spec_warnings(spec)):
        warnings.warn(message, stacklevel=4)
    return specs


def _calibrated(
    model: Any,
    tokenizer: Any,
    split: TuneTexts,
    how: CalibrateOptions,
    file: Path,
    prefix: list[int],
) -> Path:
    """That of an earlier run, if it is the same; else a new one, kept for a later run."""
    fingerprint = fingerprint_of(model) or ""
    if not (file.exists() and split.made(file, fingerprint, how, len(prefix))):
        calibrate(model, tokenizer, split.calibration, how, file, None)
    return file
