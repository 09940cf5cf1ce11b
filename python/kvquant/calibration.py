"""Calibration files and presets from Python: what `kvquant calibrate` and `kvquant tune` make."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from kvquant._core import (
    CacheSpec,
    CalibrateOptions,
    Model,
    OutOfMemory,
    Preset,
    Tokenizer,
    calibrate_tokens,
    find_asset,
    load_preset,
)
from kvquant.evaluation import SAMPLE_TEXT, SupportsEncode, tokens_of

PathLike = str | os.PathLike[str]
OnProgress = Callable[[int, int], None]  # done, total
DEFAULT_SEQ_LEN = 2048  # where the model's context allows it
NamedTokens = list[tuple[str, list[int]]]


def calibrate(
    model: Any,
    data: PathLike | Sequence[PathLike] | None = None,
    *,
    output: PathLike,
    tokenizer: SupportsEncode | Tokenizer | None = None,
    samples: int = 16,
    seq_len: int = 0,
    rank: int = 0,
    seed: int = 42,
    ubatch: int = 512,
    recipe: str = "error-saved",
    outliers: str = "",
    feedback: str = "",
    codebook: str = "",
    codebook_weights: str = "",
    codebook_per: str = "layer",
    bases: str = "outputs",
    fisher: PathLike | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Fits codebooks, scales and bases to a model on texts, into one file (.safetensors).

    model: a Model, whose file is that of `kvquant calibrate` to the byte; or a transformers model
    with its tokenizer, which the engine need not know: it runs in torch, layer by layer, and what
    attention sees is fitted by the same code. data: text files, by default the sample text.
    seq_len: tokens of a sample, 0 for 2048 or the model's context. The others are the options of
    `kvquant calibrate --help`. Returns what the file says of itself: num_samples, seq_len, tokens,
    rank, recipe, model_fingerprint, output.
    """
    if tokenizer is None:
        tokenizer = tokenizer_of(model)
    texts = read_texts(data, tokenizer)
    options = CalibrateOptions(
        samples=samples,
        seq_len=seq_len or min(DEFAULT_SEQ_LEN, context_of(model)),
        rank=rank,
        seed=seed,
        ubatch=ubatch,
        recipe=recipe,
        outliers=outliers,
        feedback=feedback,
        codebook=codebook,
        codebook_weights=codebook_weights,
        codebook_per=codebook_per,
        bases=bases,
        fisher=fisher,
    )
    try:
        if isinstance(model, Model):
            return calibrate_tokens(model, texts, options, output, on_progress)
        from kvquant.hf.calibration import calibrate as for_transformers

        return for_transformers(model, tokenizer, texts, options, output, on_progress)
    except (OutOfMemory, MemoryError) as error:
        raise OutOfMemory(out_of_memory(error, options)) from error


def estimate_fisher(
    model: Any,
    data: PathLike | Sequence[PathLike] | None = None,
    *,
    output: PathLike,
    tokenizer: SupportsEncode | Tokenizer | None = None,
    samples: int = 16,
    seq_len: int = 0,
    seed: int = 42,
    on_progress: OnProgress | None = None,
) -> None:
    """Squared gradients of keys and values, a mean per channel, for calibrate's fisher=.

    model: a transformers model, with its tokenizer. The loss is the sum of the samples' negative
    log-likelihoods; the file (.safetensors) is what `kvquant calibrate --fisher` reads with
    `--codebook-weights fisher`.
    """
    if isinstance(model, Model):
        raise ValueError("the engine has no gradients: give a transformers model (load_model)")
    if tokenizer is None:
        tokenizer = tokenizer_of(model)
    texts = read_texts(data, tokenizer)
    options = CalibrateOptions(
        samples=samples, seq_len=seq_len or min(DEFAULT_SEQ_LEN, context_of(model)), seed=seed
    )
    from kvquant.hf.fisher import estimate

    try:
        estimate(model, tokenizer, texts, options, output, on_progress)
    except (OutOfMemory, MemoryError) as error:
        raise OutOfMemory(out_of_memory(error, options)) from error


def tune(
    model: str | Model | Any = "",
    data: PathLike | Sequence[PathLike] | None = None,
    *,
    output: PathLike,
    tokenizer: SupportsEncode | Tokenizer | None = None,
    target_ppl_delta: float = 0.05,
    target: str = "v",
    rank_grid: Sequence[int | str] = (),
    bits_options: Sequence[int] = (),
    codecs: Sequence[str] = (),
    kv: Sequence[str | CacheSpec] = (),
    quiet: bool = True,
    **options: Any,
) -> Preset:
    """The smallest cache within a budget of perplexity: what `kvquant tune` finds and writes.

    model: a name or path that the engine runs, or a Model, whose path is taken; or a transformers
    model with its tokenizer, whose candidates torch measures and the same code chooses from.
    rank_grid: ranks to try, ("none",) for none. options: the program's other ones with underscores
    (sink, recent, test, windows, test_windows, calib, samples, seq_len, ctx, ubatch, seed, name;
    for the engine threads and the like as well). ValueError "PPL degradation too high" when nothing
    is within the budget.
    """
    chosen = {
        "target_ppl_delta": target_ppl_delta,
        "target": target,
        "rank_grid": rank_grid,
        "bits_options": bits_options,
        "codecs": codecs,
        "kv": kv,
        **options,
    }
    if isinstance(model, (str, Model)):
        name = model.path if isinstance(model, Model) else model
        return _run_tune(name, data, output, chosen, quiet)
    return _tune_transformers(model, tokenizer, data, output, chosen)


def _run_tune(
    model: str,
    data: PathLike | Sequence[PathLike] | None,
    output: PathLike,
    options: dict[str, Any],
    quiet: bool,
) -> Preset:
    """The program, with the options as its flags."""
    from kvquant.__main__ import find_program

    command = [str(find_program()), "tune", "--output", str(output)]
    command += ["--model", model] if model else []
    files = [data] if isinstance(data, (str, os.PathLike)) else list(data or ())
    command += ["--data", *map(str, files)] if files else []
    for option, value in options.items():
        flag = f"--{option.replace('_', '-')}"
        if option == "kv":
            for spec in value:
                command += [flag, str(spec)]
        elif option in ("rank_grid", "codecs", "bits_options"):
            command += [flag, *map(str, value)] if value else []
        else:
            command += [flag, str(value)]
    done = subprocess.run(
        [*command, *(["--quiet"] if quiet else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else sys.stderr,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return load_preset(output)
    said = (done.stderr or "").strip().splitlines()
    message = said[-1].removeprefix("kvquant: ") if said else "kvquant tune: see its messages"
    raise (OutOfMemory if done.returncode == 3 else ValueError)(message)


def _tune_transformers(
    model: Any,
    tokenizer: SupportsEncode | Tokenizer | None,
    data: PathLike | Sequence[PathLike] | None,
    output: PathLike,
    options: dict[str, Any],
) -> Preset:
    from kvquant.hf.tuning import TuneOptions
    from kvquant.hf.tuning import tune as for_transformers

    if tokenizer is None:
        tokenizer = tokenizer_of(model)
    test = options.pop("test", None)
    unknown = sorted(set(options) - {field.name for field in fields(TuneOptions)})
    if unknown:
        raise ValueError(f"tune of a transformers model has no option {', '.join(unknown)}")
    texts = read_texts(data, tokenizer)
    tested = read_texts(test, tokenizer) if test is not None else []
    return for_transformers(model, tokenizer, texts, tested, TuneOptions(**options), output)


def tokenizer_of(model: Any) -> Tokenizer:
    """The engine's own; ValueError for transformers models, which have none."""
    if not isinstance(model, Model):
        raise ValueError("tokenizer is None, but a transformers model has none of its own")
    return model.tokenizer


def context_of(model: Any) -> int:
    """Tokens."""
    if isinstance(model, Model):
        return int(model.config["max_context"])
    return int(model.config.max_position_embeddings)


def read_texts(
    data: PathLike | Sequence[PathLike] | None, tokenizer: SupportsEncode | Tokenizer
) -> NamedTokens:
    """(name, token ids) of files."""
    files = [data] if isinstance(data, (str, os.PathLike)) else list(data or ())
    if not files:
        files = [find_asset(SAMPLE_TEXT)]
    return [
        (str(file), tokens_of(tokenizer, Path(file).read_text(encoding="utf-8"))) for file in files
    ]


def bos_of(tokenizer: SupportsEncode | Tokenizer) -> int:
    """What a tokenizer puts before a text; -1 when that is nothing."""
    prefix = tokenizer.encode("", add_special_tokens=True)
    if len(prefix) > 1:
        raise ValueError(f"the tokenizer puts {len(prefix)} tokens before a text, not one at most")
    return prefix[0] if prefix else -1


def out_of_memory(error: BaseException, options: CalibrateOptions) -> str:
    """In words that say what to do."""
    return (
        f"OOM during calibration: {error or 'out of memory'}: use fewer samples than "
        f"{options.samples} or a seq_len shorter than {options.seq_len}"
    )
