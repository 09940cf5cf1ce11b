#!/usr/bin/env python3
"""Writes quant_golden.json: quantization by the formulas of KVQuant (arXiv 2401.18079).

Keys: per-channel percentile thresholds, what lies outside is an outlier and kept exactly. Values:
per token, the largest and smallest of a row are outliers. The rest is normalised to [-1, 1] by half
its range and its middle (both fp16), coded with the nearest level of a codebook fitted by weighted
k-means, ties to the lower index, and decoded. Then uniform levels without outliers.
Inputs are fp16 numbers. Needs numpy. Run: python3 make_quant_golden.py > quant_golden.json
"""
import json
import math
from fractions import Fraction

import numpy as np

F = np.float32
KEY_TOKENS, VALUE_TOKENS, CHANNELS = 40, 16, 8


def half(x):
    return np.asarray(x, np.float32).astype(np.float16).astype(np.float32)


def inputs(rng, tokens):
    """Heavy tails, one large channel, one with an offset, one constant."""
    x = rng.standard_t(3, (tokens, CHANNELS))
    x[:, 1] *= 20
    x[:, 2] += 7
    x[:, 5] = -2.5
    return half(np.clip(x, -500, 500))


def scale_and_zero(low, high):
    return half(F(0.5) * (F(high) - F(low))), half(F(0.5) * (F(low) + F(high)))


def key_ranges(x, percent):
    """Thresholds of the channels: what is left after floor(n P / 200) values on either end."""
    drop = int(Fraction(str(percent)) * len(x) / 200)
    ordered = np.sort(x, axis=0)
    low, high = ordered[drop], ordered[len(x) - 1 - drop]
    mask = (x < low) | (x > high)
    scale, zero = scale_and_zero(low, high)
    return scale[None, :], zero[None, :], mask


def value_ranges(x, percent):
    """Per row the ceil(n P / 200) largest and as many smallest, ties to the lower index."""
    count = math.ceil(Fraction(str(percent)) * x.shape[1] / 200)
    mask = np.zeros(x.shape, bool)
    scales, zeros = [], []
    for row, marks in zip(x, mask):
        for key in (-row, row):
            free = [i for i in np.argsort(key, kind="stable") if not marks[i]]
            marks[free[:count]] = True
        scale, zero = scale_and_zero(row[~marks].min(), row[~marks].max())
        scales.append(scale)
        zeros.append(zero)
    return np.array(scales)[:, None], np.array(zeros)[:, None], mask


def normalise(x, scale, zero):
    with np.errstate(divide="ignore"):
        inverse = np.where(scale > 0, F(1) / scale, F(0)).astype(F)
    return ((x - zero).astype(F) * inverse).astype(F)


def kmeans(values, weights, bits):
    """The best 2^bits levels by dynamic programming over the sorted values, O(levels n^2)."""
    order = np.argsort(values, kind="stable")
    x, w = values[order].astype(np.float64), weights[order].astype(np.float64)
    n, levels = len(x), 2**bits
    cost = np.full((n + 1, n + 1), np.inf)  # of x[i:j] as one cluster
    for i in range(n):
        sw, s = np.cumsum(w[i:]), np.cumsum(w[i:] * x[i:])
        square = np.cumsum(w[i:] * x[i:] ** 2)
        cost[i, i + 1 :] = np.maximum(square - s * s / sw, 0)
    best, starts = cost[0], []
    for _ in range(levels - 1):
        total = best[:, None] + cost
        starts.append(np.argmin(total, axis=0))
        best = total.min(axis=0)
    ends = [n]
    for start in reversed(starts):
        ends.insert(0, int(start[ends[0]]))
    ends.insert(0, 0)
    return np.array([np.average(x[a:b], weights=w[a:b]) for a, b in zip(ends, ends[1:])], F)


def numbers(array):
    """Shortest decimals that read back as the same f32."""
    return [float(str(F(v))) for v in np.asarray(array).ravel()]


def nuq_case(side, x, bits, percent):
    scale, zero, mask = (key_ranges if side == "key" else value_ranges)(x, percent)
    y = normalise(x, scale, zero)
    weights = np.broadcast_to(scale * scale, x.shape).astype(F)
    inside = ~mask & (weights > 0)
    # Scales are rounded to fp16, so y may pass 1 by a little; levels may not.
    book = kmeans(np.clip(y[inside], -1, 1), weights[inside], bits)
    middles = (F(0.5) * (book[:-1] + book[1:]).astype(F)).astype(F)
    codes = (y[..., None] > middles).sum(-1)
    out = ((book[codes] * scale).astype(F) + zero).astype(F)
    out[mask] = x[mask]
    return {"side": side, "bits": bits, "outlier_percent": percent, "codebook": numbers(book),
            "scales": numbers(scale), "zeros": numbers(zero),
            "outliers": np.flatnonzero(mask).tolist(),
            "codes": "".join(f"{c:x}" for c in codes.ravel()), "decoded": numbers(out)}


def integer_case(side, x, bits):
    """The nearest of 2^bits uniform levels of [-1, 1], in exact arithmetic; ties to the lower."""
    scale, zero, _ = (key_ranges if side == "key" else value_ranges)(x, 0)
    last = 2**bits - 1
    exact = [Fraction(2 * i - last, last) for i in range(last + 1)]
    y = normalise(x, scale, zero)
    codes = np.array([min(range(last + 1), key=lambda i: abs(exact[i] - Fraction(float(v))))
                      for v in y.ravel()]).reshape(y.shape)
    out = ((np.array(exact, F)[codes] * scale).astype(F) + zero).astype(F)
    return {"side": side, "bits": bits, "scales": numbers(scale), "zeros": numbers(zero),
            "codes": codes.ravel().tolist(), "decoded": numbers(out)}


def main():
    rng = np.random.default_rng(42)
    x = {"key": inputs(rng, KEY_TOKENS), "value": inputs(rng, VALUE_TOKENS)}
    golden = {side: {"shape": list(v.shape), "x": numbers(v)} for side, v in x.items()}
    golden["nuq"] = [nuq_case(side, x[side], bits, percent) for side in x for bits in (2, 3, 4)
                     for percent in (0, 5)]
    golden["integer"] = [integer_case(side, x[side], bits) for side in x for bits in (8, 4)]
    lines = [f'"{k}": ' + json.dumps(v, separators=(",", ":")) for k, v in golden.items()]
    print("{" + ",\n".join(lines) + "}")


if __name__ == "__main__":
    main()
