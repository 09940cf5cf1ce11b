"""Runs the engines of a request in turn and prints what they say side by side."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kvquant.baselines.engines import Engine, all_engines, parse
from kvquant.baselines.request import Request, Row, parse_request

# An engine that takes longer hangs, as some do that compile kernels at their first use.
LEAST_LIMIT_S = 600.0
SLOWEST = 20.0  # times as long as kvquant
NUM_ROUNDS = 2  # the second in the opposite order, so that a drift of the machine hits all alike


@dataclass
class Outcome:
    rows: dict[tuple[object, ...], Row] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # engine -> why it did not run
    errors: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    limit_s: float | None = None  # of an engine's turn, once kvquant had its own

    def add(self, row: Row) -> None:
        if row.key in self.rows:
            self.rows[row.key].tokens_per_s += row.tokens_per_s
        else:
            self.rows[row.key] = row

    @property
    def peaks(self) -> dict[str, float]:
        """The best that any round measured."""
        best: dict[str, float] = {}
        for row in self.rows.values():
            for key, value in row.peaks.items():
                best[key] = max(best.get(key, 0.0), value)
        return best


def run_engine(engine: Engine, request: Request, outcome: Outcome) -> None:
    """One turn; what goes wrong is the engine's error, and its rows are dropped."""
    if engine.name in outcome.errors:
        return
    if not request.quiet:
        print(f"baseline: {engine.name}", file=sys.stderr, flush=True)
    begin = time.monotonic()
    try:
        with tempfile.TemporaryFile("w+", errors="replace") as err:
            done = subprocess.run(
                engine.command(request),
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                check=False,
                timeout=outcome.limit_s,
            )
            err.seek(0)
            messages = [line.strip() for line in err if line.strip()]
        if done.returncode != 0:
            said = f": {messages[-1]}" if messages else ""
            how = f"exit code {done.returncode}" if done.returncode > 0 else "a signal"
            raise ValueError(f"ended with {how}{said}")
        rows = parse(engine, done.stdout, request)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        late = isinstance(error, subprocess.TimeoutExpired)
        outcome.errors[engine.name] = (
            f"stopped after {outcome.limit_s:.0f} s" if late else str(error)
        )
        outcome.rows = {k: row for k, row in outcome.rows.items() if row.engine != engine.name}
        return
    if engine.name == "kvquant":
        document = json.loads(done.stdout)
        outcome.machine, outcome.model = document["machine"], document["model"]
        outcome.limit_s = max(LEAST_LIMIT_S, SLOWEST * (time.monotonic() - begin))
    for row in rows:
        outcome.add(row)


def run_all(engines: Sequence[Engine], request: Request) -> Outcome:
    outcome = Outcome()
    able = []
    for engine in engines:
        if why := engine.why_not(request):
            outcome.absent[engine.name] = why
            continue
        able.append(engine)
        if why := engine.left_out(request):
            outcome.left_out[engine.name] = why
    for number in range(NUM_ROUNDS):
        for engine in able if number % 2 == 0 else reversed(able):
            run_engine(engine, request, outcome)
    return outcome


def results_of(outcome: Outcome, request: Request) -> list[dict[str, Any]]:
    """Flat, by shape; then what has no figures."""
    order = {shape: i for i, shape in enumerate(request.shapes)}
    rows = sorted(outcome.rows.values(), key=lambda row: order[row.shape])  # stable
    first = {row.shape: row.median for row in reversed(rows) if row.engine == "kvquant"}
    results: list[dict[str, Any]] = []
    for row in rows:
        results.append(
            {
                "engine": row.engine,
                "version": row.version,
                "cache": row.cache,
                "weights": row.weights,
                "test": str(row.shape),
                **asdict(row.shape),
                "threads": request.threads,
                "status": "ok",
                "tokens_per_s_median": row.median,
                "tokens_per_s_sd": row.spread,
                "ratio_to_first_spec": row.median / first[row.shape]
                if row.shape in first
                else None,
                "tokens_per_s": row.tokens_per_s,
                "cache_bytes": row.cache_bytes,
            }
        )
    for status, reasons in (("not run", outcome.absent), ("failed", outcome.errors)):
        results += [{"engine": e, "status": status, "reason": why} for e, why in reasons.items()]
    for engine, why in outcome.left_out.items():
        results.append({"engine": engine, "status": "left out", "reason": why})
    return results


def document_of(outcome: Outcome, request: Request) -> dict[str, Any]:
    asked = asdict(request)
    config = {key: asked[key] for key in asked if key not in ("output", "json", "quiet", "program")}
    return {
        "schema": 1,
        "command": "bench --baseline",
        "model": outcome.model,
        "config": config | {"rounds": NUM_ROUNDS, "peaks": outcome.peaks},
        "machine": outcome.machine,
        "results": results_of(outcome, request),
    }


_COLUMNS = ["test", "engine", "cache", "weights", "tokens/s", "x first spec", "cache bytes"]


def to_table(document: dict[str, Any]) -> str:
    """Markdown: the rows with figures, then a line for every engine that has none."""
    lines = []
    if peaks := document["config"]["peaks"]:
        lines.append(
            f"{document['config']['threads']} threads, measured peaks: read "
            f"{peaks['read_gb_per_s']:.1f} GB/s, GEMM bf16 {peaks['bf16_gemm_gflop_per_s']:.0f}, "
            f"f32 {peaks['f32_gemm_gflop_per_s']:.0f} GFLOP/s"
        )
    cells = [_COLUMNS]
    notes = []
    for result in document["results"]:
        if result["status"] != "ok":
            notes.append(f"{result['engine']}: {result['status']}: {result['reason']}")
            continue
        size = result["cache_bytes"]
        ratio = result["ratio_to_first_spec"]
        cells.append(
            [
                *(str(result[key]) for key in ("test", "engine", "cache", "weights")),
                f"{result['tokens_per_s_median']:.1f} ± {result['tokens_per_s_sd']:.1f}",
                "-" if ratio is None else f"{ratio:.2f}",
                "-" if size is None else f"{size / 2**20:.1f} MiB",
            ]
        )
    widths = [max(len(row[i]) for row in cells) for i in range(len(_COLUMNS))]
    num_left = 4  # columns of text
    for number, row in enumerate(cells):
        padded = [
            cell.ljust(width) if i < num_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |")
        if number == 0:
            rule = ["-" * (w + 1) + ("-" if i < num_left else ":") for i, w in enumerate(widths)]
            lines.append(f"|{'|'.join(rule)}|")
    return "\n".join(lines + notes)


def _flat(result: dict[str, Any]) -> dict[str, Any]:
    return {k: ";".join(map(str, v)) if isinstance(v, list) else v for k, v in result.items()}


def to_text(document: dict[str, Any], style: str) -> str:
    if style == "json":
        return json.dumps(document, indent=2)
    if style == "jsonl":
        return "\n".join(json.dumps(result) for result in document["results"])
    if style == "md":
        return to_table(document)
    names = list(dict.fromkeys(key for result in document["results"] for key in result))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_flat(result) for result in document["results"])
    return out.getvalue().rstrip("\n")


def write_whole(path: Path, text: str) -> None:
    """Under another name first: a file that is there is complete."""
    if path.exists() and not path.is_file():  # a pipe
        path.write_text(text, encoding="utf-8")
        return
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def main(arguments: list[str]) -> int:
    """0; 1 where an engine that is installed failed."""
    request = parse_request(arguments[0])
    outcome = run_all(all_engines(), request)
    document = document_of(outcome, request)
    if request.json == "-":
        print(to_text(document, "json"))
    else:
        print(to_text(document, request.output))
        if request.json:
            try:
                write_whole(Path(request.json), to_text(document, "json") + "\n")
            except OSError as error:
                print(f"kvquant: can't write {request.json}: {error.strerror}", file=sys.stderr)
                return 3
    return 1 if outcome.errors else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
