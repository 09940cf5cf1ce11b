"""What --model_args says: the cache spec, written out or of a preset."""

from __future__ import annotations

from typing import Any

from kvquant._core import CacheSpec, get_preset_info
from kvquant.lm_eval.backend import Sampling

# The harness cuts arguments at commas: kv=nuq3-1%,sink=4 comes as two, and so on.
SPEC_ITEMS = ("k", "v", "sink", "recent", "block", "layers")
NAMES = {"repetition_penalty": "repeat_penalty"}  # as transformers call it
IGNORED = ("do_sample", "num_beams", "max_length", "pad_token_id", "use_cache")
SAMPLED = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")


def spec_of(kv: str | None, items: dict[str, Any]) -> str:
    """What kv and the items behind it say; ValueError for arguments that are no items of a spec."""
    unknown = [name for name in items if name not in SPEC_ITEMS]
    if unknown:
        raise ValueError(f"unknown model_args: {', '.join(unknown)} (docs/lm_eval.md lists them)")
    parts = [] if kv is None else [str(kv)]
    parts += [f"{name}={value}" for name, value in items.items()]
    return CacheSpec(",".join(parts) or "fp16").text


def of_preset(
    pretrained: str, preset: str, calib: str | None, others: list[str]
) -> tuple[str, str | None]:
    """(spec, calibration file) of a preset, which leaves no room for a spec beside it."""
    if others:
        raise ValueError(f"preset={preset} is a whole spec: leave {', '.join(others)} out")
    info = get_preset_info(pretrained, preset)
    return info.spec, calib or info.calibration_path or None


def sampling_of(normalized: dict[str, Any], until: list[str]) -> Sampling:
    """Of generation kwargs as the harness normalizes them; ValueError for unknown ones."""
    given = {NAMES.get(name, name): value for name, value in normalized.items()}
    max_tokens = given.pop("max_gen_toks")
    given.pop("until", None)
    if given.get("num_beams", 1) != 1:
        raise ValueError(f"generation with num_beams={given['num_beams']} isn't supported")
    unknown = [name for name in given if name not in (*SAMPLED, *IGNORED)]
    if unknown:
        raise ValueError(f"unknown generation arguments: {', '.join(unknown)}")
    options = {name: given[name] for name in SAMPLED if given.get(name) is not None}
    if not given.get("do_sample"):
        options["temperature"] = 0.0
    return Sampling(max_tokens, tuple(stop for stop in until if stop), **options)
