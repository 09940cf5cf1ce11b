"""What a call of the engine from Python costs beside its work, in microseconds.

    python bench/call_overhead.py --json out.json

The calls do next to nothing: a version asked for, one number quantized. What they take is the way
there and back: arguments checked and read, the GIL released, a new array made.
Medians of rounds in turns; exit code 1 when one of the calls that take arrays is not below --limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kvquant
import numpy as np
import torch

Call = Callable[[], Any]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=2000, help="of a round")
    parser.add_argument("--limit", type=float, default=20.0, help="microseconds of a call")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def calls() -> dict[str, Call]:
    """Functions without arguments, by what they are shown as."""
    number, levels = np.zeros(1, np.float32), np.linspace(-1, 1, 8, dtype=np.float32)
    number_torch, levels_torch = torch.zeros(1), torch.linspace(-1, 1, 8)
    return {
        "version": kvquant.version,
        "quantize_to_nuq, numpy": lambda: kvquant.quantize_to_nuq(number, levels),
        "quantize_to_nuq, torch": lambda: kvquant.quantize_to_nuq(number_torch, levels_torch),
    }


def time_of(call: Call, count: int) -> float:
    """Microseconds of one of count calls."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count * 1e6


def main() -> int:
    """Prints a table; the JSON has all samples."""
    arguments = parse_arguments()
    measured = calls()
    samples: dict[str, list[float]] = {name: [] for name in measured}
    for call in measured.values():
        time_of(call, arguments.calls)  # warm-up
    for _ in range(arguments.rounds):
        for name, call in measured.items():
            samples[name].append(time_of(call, arguments.calls))
    print("| call | us | min .. max |")
    print("|---|--:|--:|")
    for name, times in samples.items():
        median = statistics.median(times)
        print(f"| {name} | {median:.2f} | {min(times):.2f} .. {max(times):.2f} |")
    if arguments.json:
        text = json.dumps({"schema": 1, "kvquant": kvquant.__version__, "samples_us": samples})
        arguments.json.write_text(text + "\n", encoding="utf-8")
    slowest = max(statistics.median(times) for times in samples.values())
    return 0 if slowest < arguments.limit else 1


if __name__ == "__main__":
    sys.exit(main())
