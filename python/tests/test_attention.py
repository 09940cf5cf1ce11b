from __future__ import annotations

from typing import Any

import kvquant
import numpy as np
import pytest
import torch
from conftest import Convert, normal


def reference(q: Any, k: Any, v: Any, mask: Any) -> torch.Tensor:
    """Causal attention in double over k and v [batch, heads, seq_len, head_dim]."""
    q, k, v = (torch.as_tensor(x).double() for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    length = q.shape[2]
    real = torch.as_tensor(mask).bool()
    allowed = torch.tril(torch.ones(length, length, dtype=torch.bool)) & real[:, None, None, :]
    scores = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).masked_fill(~allowed, -torch.inf)
    out: torch.Tensor = torch.softmax(scores, -1).nan_to_num() @ v
    return out * real[:, None, :, None]


def test_the_call_of_the_published_plan() -> None:
    q, k, v = (torch.from_numpy(normal(2, 32, 40, 128, seed=i)) for i in range(3))
    mask = torch.ones(2, 40, dtype=torch.long)
    attention = kvquant.PrefillQuantizedAttention(num_heads=32, head_dim=128, codebook="nuq3")
    out = attention.forward(q, k, v, mask, is_prefill=True)
    assert isinstance(out, torch.Tensor)
    assert out.shape == q.shape
    assert out.dtype == torch.float32


def test_it_attends_to_what_is_stored(convert: Convert) -> None:
    q, k, v = normal(2, 6, 70, 64), normal(2, 2, 70, 64, seed=1), normal(2, 2, 70, 64, seed=2)
    mask = np.ones((2, 70), np.int64)
    mask[1, :20] = 0  # on the left
    attention = kvquant.PrefillQuantizedAttention(6, 64, "nuq4", num_kv_heads=2, num_threads=2)
    out = attention.forward(*(convert(x) for x in (q, k, v, mask)))
    assert type(out) is type(convert(q))
    keys, values = (
        np.asarray(kvquant.fused_dequantize_batch(cache))
        for cache in (attention.key_cache, attention.value_cache)
    )
    np.testing.assert_allclose(np.asarray(out), reference(q, keys, values, mask), atol=2e-5)
    assert type(attention.key_cache.seq_lengths) is type(convert(q))
    # What it stored is close to what came in.
    exact = np.asarray(reference(q, k, v, mask))
    assert 0 < np.abs(np.asarray(out) - exact).mean() < 0.05


def test_decoding_appends_to_the_caches_of_the_prefill() -> None:
    attention = kvquant.PrefillQuantizedAttention(4, 32, "nuq3")
    with pytest.raises(ValueError, match="prefill"):
        _ = attention.key_cache
    q, k, v = (normal(1, 4, 65, 32, seed=i) for i in range(3))
    attention.forward(q, k, v)
    cache = attention.key_cache
    with pytest.raises(ValueError, match="prefill"):
        kvquant.PrefillQuantizedAttention(4, 32).forward(q, k, v, is_prefill=False)
    out = attention.forward(q[:, :, :1], k[:, :, :1], v[:, :, :1], is_prefill=False)
    assert out.shape == (1, 4, 1, 32)
    assert cache.seq_len == 66  # the same cache, as it is now
    with pytest.raises(ValueError, match="forward"):
        kvquant.fused_append_batch(cache, k)


def test_the_round_trip_error_is_that_of_the_decoded_keys() -> None:
    keys = normal(1, 2, 200, 64)
    attention = kvquant.PrefillQuantizedAttention(2, 64, "nuq3")
    attention.forward(keys, keys, keys)
    error = attention.compute_round_trip_error(keys)
    decoded = kvquant.fused_dequantize_batch(attention.key_cache)
    assert error["mse"] == pytest.approx(float(np.mean((decoded - keys) ** 2)), rel=1e-5)
    assert error["max_abs_error"] == pytest.approx(float(np.abs(decoded - keys).max()), rel=1e-6)
    assert error["relative_error"] == pytest.approx(
        float(np.linalg.norm(decoded - keys) / np.linalg.norm(keys)), rel=1e-5
    )
    assert 0.02 < error["mse"] < 0.05  # 3 bits of normal data, one per cent exact


def test_mistakes_are_named() -> None:
    attention = kvquant.PrefillQuantizedAttention(4, 32, num_kv_heads=2)
    q, k = normal(1, 4, 8, 32), normal(1, 2, 8, 32)
    holes = np.array([[1, 1, 0, 1, 1, 1, 1, 1]])
    for arguments, message in (
        ((q, q, q), "key"),
        ((q, k, k[:, :, :7]), "value"),
        ((q[0], k, k), "query has 3 dimensions, not 4"),
        ((q, k, k, holes), "hole"),
        ((q, k, k, np.ones((1, 9))), "mask"),
        ((q.astype(np.float64), k, k), "query is float64"),
        ((q, k * np.nan, k), "nan"),
    ):
        with pytest.raises(ValueError, match=message):
            attention.forward(*arguments)
    with pytest.raises(ValueError, match="num_kv_heads"):
        kvquant.PrefillQuantizedAttention(4, 32, num_kv_heads=3)
    with pytest.raises(ValueError, match="head_dim"):
        kvquant.PrefillQuantizedAttention(4, 30)
