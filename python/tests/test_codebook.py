from __future__ import annotations

from pathlib import Path

import kvquant
import numpy as np
import pytest
from conftest import Convert, normal


def test_names_say_bits_and_levels() -> None:
    assert [kvquant.get_nuq_bitwidth(name) for name in ("nuq2", "nuq3-1%", "nuq4")] == [2, 3, 4]
    assert kvquant.get_num_levels("nuq4") == 16
    with pytest.raises(ValueError, match="nuq5"):
        kvquant.get_nuq_bitwidth("nuq5")


def test_heuristic_levels_ascend_and_are_symmetric() -> None:
    levels = kvquant.create_heuristic_codebook("nuq3")
    assert levels.dtype == np.float32
    assert levels.shape == (8,)
    assert np.all(np.diff(levels) > 0)
    np.testing.assert_array_equal(levels, -levels[::-1])
    np.testing.assert_array_equal(levels, kvquant.get_cached_codebook("nuq3"))


def test_codes_are_the_nearest_levels(convert: Convert) -> None:
    x = np.clip(normal(3, 50), -1, 1)
    levels = kvquant.create_heuristic_codebook("nuq4")
    codes = kvquant.quantize_to_nuq(convert(x), "nuq4")
    assert type(codes) is type(convert(x))
    assert tuple(codes.shape) == x.shape
    expected = np.argmin(np.abs(x[..., None] - levels), axis=-1)
    np.testing.assert_array_equal(np.asarray(codes), expected)
    decoded = kvquant.dequantize_from_nuq(codes, levels)
    np.testing.assert_array_equal(np.asarray(decoded), levels[expected])


def test_a_fitted_codebook_beats_the_heuristic_one_on_its_data() -> None:
    x = np.clip(np.random.default_rng(1).laplace(size=5000).astype(np.float32) / 12, -1, 1)
    fitted = kvquant.compute_nuq_codebook(x, None, 3)
    error = {
        name: float(np.mean((x - levels[kvquant.quantize_to_nuq(x, levels)]) ** 2))
        for name, levels in (("fit", fitted), ("nuq3", kvquant.create_heuristic_codebook("nuq3")))
    }
    assert 0 < error["fit"] < 0.8 * error["nuq3"]


def test_weights_draw_levels_to_where_they_are() -> None:
    x = np.linspace(-1, 1, 1001, dtype=np.float32)
    right = kvquant.compute_nuq_codebook(x, np.where(x > 0, 1, 1e-6).astype(np.float32), 2)
    assert np.sum(right > 0) >= 3
    with pytest.raises(ValueError, match="weights"):
        kvquant.compute_nuq_codebook(x, x[:5], 2)


def test_scales_are_the_statistic_asked_for_and_skip_padding(convert: Convert) -> None:
    x = normal(2, 3, 20, 8)
    mask = np.ones((2, 20), np.int64)
    mask[1, 12:] = 0
    real = np.concatenate([x[0], x[1, :, :12]], axis=1)
    x[1, :, 12:] = np.nan  # padding may hold anything
    mean = kvquant.estimate_scaling_factors(convert(x), convert(mask))
    assert type(mean) is type(convert(x))
    np.testing.assert_allclose(np.asarray(mean), np.abs(real).mean(axis=1), rtol=1e-5)
    largest = kvquant.estimate_scaling_factors(
        convert(x), convert(mask), kvquant.ScaleRule.max_abs()
    )
    np.testing.assert_array_equal(np.asarray(largest), np.abs(real).max(axis=1))
    median = kvquant.estimate_scaling_factors(
        convert(x), convert(mask), kvquant.ScaleRule.percentile(50)
    )
    np.testing.assert_array_equal(np.asarray(median), np.sort(np.abs(real), axis=1)[:, 15])


def test_layers_survive_their_files(tmp_path: Path) -> None:
    codebooks = [kvquant.get_cached_codebook("nuq2"), np.stack([np.linspace(-1, 1, 8)] * 3)]
    codebooks = [levels.astype(np.float32) for levels in codebooks]
    kvquant.save_per_layer_codebooks(tmp_path, codebooks)
    for found, saved in zip(kvquant.load_per_layer_codebooks(tmp_path), codebooks, strict=True):
        np.testing.assert_array_equal(found, saved)
    scales = [np.abs(normal(2, 16, seed=i)) for i in range(3)]
    kvquant.save_per_layer_scaling_factors(str(tmp_path), scales)
    for found, saved in zip(kvquant.load_per_layer_scaling_factors(tmp_path), scales, strict=True):
        np.testing.assert_array_equal(found, saved)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(kvquant.IoError, match=r"codebooks\.safetensors"):
        kvquant.load_per_layer_codebooks(tmp_path)
    (tmp_path / "codebooks.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(kvquant.FormatError, match=r"codebooks\.safetensors"):
        kvquant.load_per_layer_codebooks(tmp_path)
    assert issubclass(kvquant.FormatError, RuntimeError)
