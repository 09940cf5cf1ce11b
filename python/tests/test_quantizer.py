from __future__ import annotations

import threading
from typing import Any

import kvquant
import numpy as np
import pytest
import torch
from conftest import Convert, normal


def batch() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    keys = normal(2, 4, 300, 64)
    mask = np.ones((2, 300), np.int64)
    mask[1, 200:] = 0
    keys[1, :, 200:] = np.nan
    return keys, mask


def test_the_call_of_the_published_plan(convert: Convert) -> None:
    keys, attention_mask = (convert(x) for x in batch())
    cache = kvquant.BatchedKVQuantizer(codebook="nuq3", outlier_fraction=0.01).quantize_keys(
        keys, attention_mask
    )
    assert (cache.batch, cache.num_heads, cache.seq_len, cache.head_dim) == (2, 4, 300, 64)
    assert (cache.side, cache.bits) == ("keys", 3)
    assert type(cache.quantized_indices) is type(keys)
    assert np.asarray(cache.seq_lengths).tolist() == [300, 200]


def test_views_are_what_decoding_puts_together() -> None:
    keys, mask = batch()
    quantizer = kvquant.BatchedKVQuantizer("nuq3", outlier_fraction=0.02)
    cache = quantizer.quantize_keys(keys, mask)
    outliers = cache.outlier_mask
    assert outliers.dtype == np.bool_
    # floor(2% of the length) of each channel, and none in padding.
    np.testing.assert_array_equal(outliers.sum(axis=2), np.full((2, 4, 64), [[[6]], [[4]]]))
    decoded = quantizer.dequantize(cache)
    np.testing.assert_array_equal(decoded[outliers], keys[outliers])
    np.testing.assert_array_equal(cache.outlier_values[outliers], keys[outliers])
    real = np.broadcast_to(mask[:, None, :, None] == 1, decoded.shape)
    levels = cache.codebook[cache.quantized_indices] * cache.scaling_factors[None, :, None, :]
    np.testing.assert_array_equal(decoded[real & ~outliers], levels[real & ~outliers])
    assert np.all(decoded[~real] == 0)


def test_torch_and_numpy_give_the_same_bytes() -> None:
    keys, mask = batch()
    quantizer = kvquant.BatchedKVQuantizer("nuq4")
    ours = quantizer.quantize_values(keys, mask)
    theirs = quantizer.quantize_values(torch.from_numpy(keys), torch.from_numpy(mask).bool())
    assert isinstance(theirs.quantized_indices, torch.Tensor)
    np.testing.assert_array_equal(ours.quantized_indices, theirs.quantized_indices.numpy())
    np.testing.assert_array_equal(quantizer.dequantize(ours), quantizer.dequantize(theirs).numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_floats_are_widened_exactly(dtype: torch.dtype) -> None:
    keys = torch.from_numpy(normal(1, 2, 70, 16)).to(dtype)
    quantizer = kvquant.BatchedKVQuantizer("nuq3")
    narrow = quantizer.dequantize(quantizer.quantize_keys(keys))
    wide = quantizer.dequantize(quantizer.quantize_keys(keys.float()))
    assert torch.equal(narrow, wide)


def test_strided_views_are_read_in_place() -> None:
    keys = normal(1, 40, 2, 32)  # [batch, seq_len, num_heads, head_dim]
    quantizer = kvquant.BatchedKVQuantizer("nuq3")
    strided = quantizer.quantize_keys(keys.transpose(0, 2, 1, 3))
    gapless = quantizer.quantize_keys(np.ascontiguousarray(keys.transpose(0, 2, 1, 3)))
    np.testing.assert_array_equal(strided.quantized_indices, gapless.quantized_indices)
    reversed_channels = quantizer.quantize_keys(keys.transpose(0, 2, 1, 3)[..., ::-1])
    np.testing.assert_array_equal(
        reversed_channels.quantized_indices, gapless.quantized_indices[..., ::-1]
    )


def test_appending_does_not_change_what_is_there() -> None:
    first, second = normal(1, 2, 100, 32), normal(1, 2, 30, 32, seed=1)
    quantizer = kvquant.BatchedKVQuantizer("nuq3", block_size=64)
    cache = quantizer.quantize_keys(first)
    before = cache.quantized_indices
    quantizer.append_keys(cache, second)
    assert cache.seq_len == 130
    np.testing.assert_array_equal(cache.quantized_indices[:, :, :100], before)
    whole = quantizer.quantize_keys(
        np.concatenate([first, second], axis=2), None, cache.key_thresholds
    )
    np.testing.assert_array_equal(whole.quantized_indices, cache.quantized_indices)
    with pytest.raises(ValueError, match="append_values"):
        quantizer.append_values(cache, second)
    with pytest.raises(ValueError, match="options"):
        kvquant.BatchedKVQuantizer("nuq2", block_size=64).append_keys(cache, second)


def test_functions_do_what_the_class_does() -> None:
    values = normal(3, 50, 16)
    options = kvquant.KVQuantizerOptions("nuq4", outlier_fraction=0.02)
    one = kvquant.fused_quantize("values", values, options)
    batched = kvquant.fused_quantize_batch("values", values[None], None, options)
    decoded = kvquant.fused_dequantize(one)
    assert decoded.shape == (3, 50, 16)
    np.testing.assert_array_equal(decoded, kvquant.fused_dequantize_batch(batched)[0])
    kvquant.fused_append_batch(batched, values[None, :, :7])
    assert batched.seq_len == 57
    with pytest.raises(ValueError, match="side is 'both'"):
        kvquant.fused_quantize("both", values, options)


def test_outliers_come_out_as_sparse_matrices() -> None:
    keys, mask = batch()
    quantizer = kvquant.BatchedKVQuantizer("nuq3")
    cache = quantizer.quantize_keys(keys, mask)
    matrices = quantizer.extract_key_outliers_to_sparse(cache, 2)
    assert [matrix.num_cols for matrix in matrices] == [300, 200]
    np.testing.assert_array_equal(
        matrices[1].to_dense(), cache.outlier_values[1, 2, :200].transpose()
    )
    values = quantizer.quantize_values(keys, mask)
    rows = quantizer.extract_value_outliers_to_sparse(values, 0)
    np.testing.assert_array_equal(rows[0].to_dense(), values.outlier_values[0, 0])
    with pytest.raises(ValueError, match="head"):
        quantizer.extract_key_outliers_to_sparse(cache, 4)


def test_scales_and_levels_of_the_caller() -> None:
    keys = 10 * normal(1, 2, 200, 16)
    scales = np.abs(keys).max(axis=(0, 2))
    levels = np.linspace(-1, 1, 16, dtype=np.float32)
    quantizer = kvquant.BatchedKVQuantizer(levels, scales, outlier_fraction=0)
    decoded = quantizer.dequantize(quantizer.quantize_keys(keys))
    # Sixteen even levels: half a step off at most.
    assert np.all(np.abs(decoded - keys) <= scales[None, :, None, :] / 15 * 1.0001)


def test_lengths_of_masks(convert: Convert) -> None:
    mask = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]], np.int32)
    lengths = kvquant.get_sequence_lengths(convert(mask))
    assert type(lengths) is type(convert(mask))
    assert np.asarray(lengths).tolist() == [2, 2, 0]
    assert np.asarray(kvquant.get_sequence_lengths(convert(mask == 1))).tolist() == [2, 2, 0]
    assert np.asarray(kvquant.get_sequence_lengths(convert(mask.astype(np.float32)))).tolist() == [
        2,
        2,
        0,
    ]


def test_a_cache_may_be_read_by_several_threads() -> None:
    keys, mask = batch()
    cache = kvquant.BatchedKVQuantizer("nuq3").quantize_keys(keys, mask)
    expected = kvquant.fused_dequantize_batch(cache)
    failures: list[int] = []

    def read(index: int) -> None:
        for _ in range(5):
            if not np.array_equal(kvquant.fused_dequantize_batch(cache), expected):
                failures.append(index)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
