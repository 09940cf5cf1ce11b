"""Which specs no other beats: less divergence, fewer bytes, more tokens/s, less energy."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from kvquant.report.load import Results, Speed


@dataclass(frozen=True)
class ParetoRow:
    spec: str  # with the calibration where there are several
    kl_mean: float  # nats
    bytes: float  # of the cache, or true bits where no sweep measured it
    tokens_per_s: float | None = None  # decoding
    joules_per_token: float | None = None
    is_dominated: bool = False

    def costs(self) -> tuple[float | None, ...]:
        rate = self.tokens_per_s
        return (self.kl_mean, self.bytes, None if rate is None else -rate, self.joules_per_token)


def _dominates(a: ParetoRow, b: ParetoRow) -> bool:
    """No worse in what both have, better somewhere. What one lacks is not compared."""
    pairs = [
        (x, y) for x, y in zip(a.costs(), b.costs(), strict=True) if x is not None and y is not None
    ]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def pareto_front(rows: list[ParetoRow]) -> list[ParetoRow]:
    """The rows, with is_dominated set, by bytes."""
    marked = [replace(a, is_dominated=any(_dominates(b, a) for b in rows)) for a in rows]
    return sorted(marked, key=lambda row: (row.bytes, row.kl_mean))


def common_speeds(speeds: list[Speed]) -> dict[str, Speed]:
    """A result per spec, all of the prompt and batch that most specs have, the largest of those."""
    shapes = Counter((s.prompt, s.batch) for s in speeds if not s.is_largest_batch)
    if not shapes:
        return {}
    shape = max(shapes, key=lambda s: (shapes[s], s[0] * s[1]))
    return {s.spec: s for s in speeds if (s.prompt, s.batch) == shape and not s.is_largest_batch}


def pareto_rows(results: Results) -> list[ParetoRow]:
    """Of the specs with a divergence and a speed; by true bits alone where no two have both."""
    speeds = common_speeds(results.measured)
    judged = {q.spec for q in results.qualities if q.kl_mean is not None}
    has_speeds = len(judged & speeds.keys()) >= 2
    rows = []
    for quality in results.qualities:
        speed = speeds.get(quality.spec) if has_speeds else None
        if has_speeds and speed is None:
            continue
        size = speed.cache_bytes if speed else quality.true_bits
        if quality.kl_mean is None or size is None:
            continue
        rows.append(
            ParetoRow(
                results.name_of(quality),
                quality.kl_mean,
                float(size),
                speed.decode_tokens_per_s if speed else None,
                speed.decode_joules_per_token if speed and not speed.is_energy_assumed else None,
            )
        )
    return pareto_front(rows)
