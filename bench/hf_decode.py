"""Decoding steps of a transformers model: DynamicCache with sdpa beside kvquant's fused cache.

    python bench/hf_decode.py MODEL --depths 4096,16384 --kv fp16 --kv nuq4-1% --json out.json

The caches take turns, several tokens each, in one process with the same threads; the result is the
median of the time of a step of all rounds, the spread is that of rounds. DynamicCache holds the
model's dtype (--dtype). Prefill is not timed. MODEL is a directory (kvquant make-model), "smollm2"
or "embedded".
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import kvquant
import torch
from transformers import DynamicCache

BASELINE = "DynamicCache, sdpa"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--depths", default="4096,16384", help="tokens before the first step")
    parser.add_argument("--kv", action="append", help="spec of a fused cache, repeatable")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8, help="tokens of a cache's turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


@torch.no_grad()
def prefill(model: Any, cache: Any, ids: torch.Tensor) -> None:
    """Fills the cache with ids [1, depth], in chunks of 512."""
    for first in range(0, ids.shape[1], 512):
        model(ids[:, first : first + 512], past_key_values=cache, logits_to_keep=1)


@torch.no_grad()
def step_time_s(model: Any, cache: Any, num_steps: int) -> float:
    """Seconds of one greedy step, the mean of num_steps."""
    token = torch.tensor([[1]])
    start = time.perf_counter()
    for _ in range(num_steps):
        token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
    return (time.perf_counter() - start) / num_steps


def cache_bytes(cache: Any) -> int:
    """What the cache holds."""
    if hasattr(cache, "memory_bytes"):
        return int(cache.memory_bytes())
    layers = ((layer.keys, layer.values) for layer in cache.layers)
    return sum(x.numel() * x.element_size() for pair in layers for x in pair)


def measure(model: Any, depth: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A result per cache at one depth."""
    generator = torch.Generator().manual_seed(42)
    ids = torch.randint(model.config.vocab_size, (1, depth), generator=generator)
    caches: dict[str, Any] = {BASELINE: DynamicCache(config=model.config)}
    for spec in arguments.kv or ["fp16", "nuq4-1%", "nuq3-1%"]:
        caches[spec] = kvquant.CompressedDynamicCache.from_spec(model, spec)
    for cache in caches.values():
        prefill(model, cache, ids)
        step_time_s(model, cache, 2)  # warm-up
    times: dict[str, list[float]] = {name: [] for name in caches}
    for _ in range(arguments.rounds):
        for name, cache in caches.items():
            times[name].append(step_time_s(model, cache, arguments.steps))
    baseline = statistics.median(times[BASELINE])
    return [
        {
            "cache": name,
            "n_depth": depth,
            "step_s_median": statistics.median(samples),
            "step_s_min": min(samples),
            "step_s_max": max(samples),
            "ratio_to_baseline": baseline / statistics.median(samples),
            "cache_bytes": cache_bytes(caches[name]),
            "samples_s": samples,
        }
        for name, samples in times.items()
    ]


def main() -> int:
    """Prints a table; the JSON has all samples."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    model, _ = kvquant.load_model(arguments.model)
    model = model.to(getattr(torch, arguments.dtype))
    results = []
    print("| cache | depth | ms a step | min .. max | times baseline | MiB |")
    print("|---|--:|--:|--:|--:|--:|")
    for depth in (int(text) for text in arguments.depths.split(",")):
        for row in measure(model, depth, arguments):
            results.append(row)
            print(
                f"| {row['cache']} | {depth} | {row['step_s_median'] * 1e3:.1f} "
                f"| {row['step_s_min'] * 1e3:.1f} .. {row['step_s_max'] * 1e3:.1f} "
                f"| {row['ratio_to_baseline']:.2f} | {row['cache_bytes'] / 2**20:.1f} |",
                flush=True,
            )
    if arguments.json:
        config = {key: str(value) for key, value in vars(arguments).items()}
        versions = {"torch": torch.__version__, "kvquant": kvquant.__version__}
        text = json.dumps({"schema": 1, "config": config, "versions": versions, "results": results})
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
