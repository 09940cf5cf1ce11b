"""Compressors, calibrated ones, presets and policies under transformers' caches."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import kvquant
import pytest
import torch
from hf_models import EMBEDDED, config_of, embedded, generate, left_padded, logits_of, make, tiny
from hf_models import tokens as random_tokens
from kvquant.hf import (
    CompressedDynamicCache,
    IdentityCompressor,
    LowRankCompressor,
    create_cache_from_preset,
    load_calibrated_compressors,
)
from kvquant.hf.compressors import Stored

ROOT = EMBEDDED.parent.parent


class ZeroCompressor(IdentityCompressor):
    """Forgets everything."""

    def decompress(self, stored: Stored) -> torch.Tensor:
        return torch.zeros_like(stored[0])


def identities(count: int) -> list[IdentityCompressor]:
    return [IdentityCompressor() for _ in range(count)]


def of(keys: Any, values: Any) -> CompressedDynamicCache:
    return CompressedDynamicCache([keys] * 2, [values] * 2, 2)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "embedded.safetensors"
    arguments = ["-m", "embedded", "--data", str(ROOT / "assets/sample.txt"), "--samples", "2"]
    arguments += ["--seq-len", "256", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "kvquant", "calibrate", *arguments, "-o", str(path)],
        check=True,
    )
    return path


def sample_tokens(count: int) -> torch.Tensor:
    tokenizer = kvquant.Model.load("embedded", num_threads=1).tokenizer
    text = (ROOT / "assets/sample.txt").read_text(encoding="utf-8")
    return torch.tensor([tokenizer.encode(text)[-count:]])


def test_identities_change_nothing_and_zeros_much() -> None:
    model = tiny()
    ids, mask = left_padded([40, 33])
    plain = logits_of(model, ids, attention_mask=mask)
    same = logits_of(
        model, ids, of(IdentityCompressor(), IdentityCompressor()), attention_mask=mask
    )
    assert torch.equal(same, plain)
    for cache in (
        of(ZeroCompressor(), IdentityCompressor()),
        of(IdentityCompressor(), ZeroCompressor()),
    ):
        assert float((logits_of(model, ids, cache, attention_mask=mask) - plain).abs().mean()) > 0.1
    assert torch.equal(generate(model, ids, of(*identities(2))), generate(model, ids))


def test_compressor_caches_follow_the_batch() -> None:
    model = tiny()
    ids = random_tokens(2, 20)
    cache = of(*identities(2))
    for options in ({"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}):
        ours = generate(model, ids, copy.deepcopy(cache), **options)
        assert torch.equal(ours, generate(model, ids, **options))
    logits_of(model, ids, cache)
    twin = copy.deepcopy(cache)
    assert cache.memory_bytes() == 2 * 2 * ids.numel() * 2 * 32 * 4
    cache.crop(-5)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3]))
    assert cache.get_seq_length() == 15
    ours, expected = (logits_of(model, ids[:, 15:], c) for c in (cache, _fed(15)))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    cache.reset()
    assert (cache.get_seq_length(), twin.get_seq_length()) == (0, 20)


def _fed(count: int) -> CompressedDynamicCache:
    cache = of(*identities(2))
    logits_of(tiny(), random_tokens(2, 20)[:, :count], cache)
    return cache


@pytest.mark.parametrize(("bits", "bound"), [(None, 2e-3), (8, 0.03), (4, 0.5)])
def test_low_rank_compressors_of_full_rank(bits: int | None, bound: float) -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(2, 16, 16, generator=generator)).Q
    compressor = LowRankCompressor(torch.randn(2, 16, generator=generator), basis, bits)
    x = torch.randn(3, 2, 50, 16, generator=generator)
    stored = compressor.compress(x)
    error = (compressor.decompress(stored) - x).abs().max()
    assert 0 < float(error) < bound
    assert stored[0].nbytes == x.numel() * {None: 4, 8: 2, 4: 1}[bits] // 2
    odd = LowRankCompressor(torch.zeros(2, 16), basis[:, :7], bits)
    assert odd.decompress(odd.compress(x)).shape == x.shape
    with pytest.raises(ValueError, match=r"\[num_kv_heads, head_dim\]"):
        compressor.compress(x[:, :1])


@pytest.mark.parametrize(("bits", "codec"), [(None, "pca40"), (8, "pca40+int8"), (4, "pca40+int4")])
def test_calibrated_compressors_do_what_the_engine_does(
    calibration: Path, bits: int | None, codec: str
) -> None:
    model, ids = embedded(), sample_tokens(200)
    keys, values, metadata = load_calibrated_compressors(calibration, "cpu", bits, rank=40)
    assert all(isinstance(key, IdentityCompressor) for key in keys)
    assert (metadata["num_layers"], metadata["rank"], metadata["target"]) == (6, 40, "v")
    exact = logits_of(model, ids)
    ours = logits_of(model, ids, CompressedDynamicCache(keys, values, 6))
    spec = f"k=fp16,v={codec}"
    engine = logits_of(model, ids, make(model, spec, mode="strict", calibration=calibration))
    lost, apart = (ours - exact).abs().mean(), (ours - engine).abs().mean()
    assert float(lost) > 1e-3
    assert float(apart) < (0.05 if bits != 4 else 0.5) * float(lost) + 2e-3


def test_low_rank_keys_are_warned_of(calibration: Path) -> None:
    with pytest.warns(UserWarning, match="low-rank keys"):
        keys, values, _ = load_calibrated_compressors(calibration, target="kv")
    model, ids = embedded(), sample_tokens(50)
    ours = logits_of(model, ids, CompressedDynamicCache(keys, values))
    torch.testing.assert_close(ours, logits_of(model, ids), atol=0.05, rtol=0)  # of full rank


def test_calibrations_that_do_not_fit(calibration: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Calibration file not found: .*full path"):
        load_calibrated_compressors(tmp_path / "none")
    with pytest.raises(ValueError, match="rank is 65"):
        load_calibrated_compressors(calibration, rank=65)
    with pytest.raises(ValueError, match="quantize_bits is 3"):
        load_calibrated_compressors(calibration, quantize_bits=3)
    with pytest.raises(ValueError, match="target is 'q'"):
        load_calibrated_compressors(calibration, target="q")
    with pytest.raises(kvquant.FormatError, match=r"no layers.0.value.basis"):
        load_calibrated_compressors(ROOT / "presets/embedded/balanced.safetensors")
    with pytest.raises(kvquant.FormatError, match="no calibration"):
        load_calibrated_compressors(EMBEDDED / "model.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(calibration.read_bytes()[:1000])
    with pytest.raises(kvquant.FormatError, match="broken"):
        load_calibrated_compressors(broken)
    with pytest.raises(ValueError, match="calibration"):
        make(tiny(), "v=pca16", calibration=calibration)  # of another shape


def test_compressors_are_counted() -> None:
    with pytest.raises(ValueError, match="1 k_compressors for 2 layers"):
        CompressedDynamicCache(identities(1), identities(2), 2)
    wrong: Any = [None, None]
    with pytest.raises(TypeError, match="NoneType is no compressor"):
        CompressedDynamicCache(identities(2), wrong)
    with pytest.raises(ValueError, match="layer 1 of a cache of 1 layers"):
        logits_of(tiny(), random_tokens(1, 4), CompressedDynamicCache(identities(1), identities(1)))


def test_presets_make_caches(calibration: Path) -> None:
    model, ids = embedded(), sample_tokens(150)
    preset = kvquant.get_preset_info("embedded", "balanced")
    cache = create_cache_from_preset(preset, model=model)
    assert generate(model, ids, cache).shape == (1, 158)
    assert cache.spec is not None
    assert cache.spec.resolved == kvquant.resolved(preset.spec + ",recent=64")
    assert cache.num_compressed_tokens() > 0
    file = ROOT / "presets/embedded/balanced.json"
    assert create_cache_from_preset(str(file), model=model.config).get_seq_length() == 0
    low = kvquant.get_preset_info("embedded", "r40-vonly")
    for options in ({}, {"model": model}):
        made = create_cache_from_preset(low, "cpu", calibration=calibration, **options)
        assert logits_of(model, ids, made).shape == (1, 150, 4096)
        with pytest.raises((FileNotFoundError, ValueError), match="alibration"):
            create_cache_from_preset(low, "cpu", **options)


def test_presets_of_other_models() -> None:
    preset = kvquant.get_preset_info("embedded", "balanced")
    with pytest.raises(ValueError, match="for another model, ref5m: its num_layers is 6"):
        create_cache_from_preset(preset, model=tiny())
    with pytest.raises(ValueError, match="needs model="):
        create_cache_from_preset(preset)


def test_policies_know_transformers_configs() -> None:
    config = config_of("mistral")
    found = kvquant.build_compressor_config_for_policy(config, "tiny", "memory_emergency")
    assert found["use_ln_nullspace_v"] is True
    shape = kvquant.PolicyModel(2, 2, 32, max_context=1024, sliding_window=24)
    assert found == kvquant.build_compressor_config_for_policy(shape, "tiny", "memory_emergency")
    cache = make(tiny(), found["spec"])
    assert generate(tiny(), random_tokens(1, 100), cache).shape == (1, 108)


def test_presets_are_found_by_a_model_too(model: kvquant.Model) -> None:
    named = kvquant.get_preset_info("embedded", "balanced")
    for given in (embedded(), model):
        assert kvquant.get_preset_info(given, "balanced").to_json() == named.to_json()
    assert kvquant.get_preset_info(embedded(), "r48-vonly").spec == "v=pca48"
    with pytest.raises(ValueError, match="wasn't loaded from a directory"):
        kvquant.get_preset_info(tiny(), "balanced")


def test_the_preset_of_a_rank_that_comes_with_the_package() -> None:
    model, ids = embedded(), sample_tokens(40)
    preset = kvquant.get_preset_info("embedded", "r48-vonly")
    assert (preset.rank, preset.calibration_path != "") == (48, True)
    cache = kvquant.create_cache_from_preset(preset)
    out = model.generate(ids, past_key_values=cache, max_new_tokens=8, do_sample=False)
    assert out.shape == (1, 48)
    assert cache.get_seq_length() == 47
    exact = logits_of(model, ids)
    difference = (logits_of(model, ids, kvquant.create_cache_from_preset(preset)) - exact).abs()
    assert 1e-3 < float(difference.mean()) < 0.5 * float(exact.std())
