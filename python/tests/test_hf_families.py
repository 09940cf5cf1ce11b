"""Models whose layers differ, or whose RoPE can't be undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kvquant
import pytest
import torch
from hf_models import generate, left_padded, logits_of, make, tiny, tokens
from transformers.cache_utils import DynamicCache

AFTER = ("dynamic", "phi3", "gemma3")


@pytest.mark.parametrize("name", ["mixed", "gemma2"])
def test_every_layer_has_its_own_window(name: str) -> None:
    model, ids = tiny(name), tokens(1, 200)
    expected = logits_of(model, ids)
    fused = logits_of(model, ids, make(model, "fp32"))
    torch.testing.assert_close(fused, expected, atol=2e-3, rtol=2e-3)
    plain = logits_of(model, ids, make(model, "fp32", fused=False))
    torch.testing.assert_close(plain, expected, atol=2e-3, rtol=2e-3)
    # One window for all layers is another model.
    config = type(model.config).from_dict(model.config.to_dict())
    config.layer_types = ["sliding_attention"] * 2
    other = type(model)(config).eval().requires_grad_(False)
    other.load_state_dict(model.state_dict())
    assert float((logits_of(other, ids) - expected).abs().max()) > 0.05
    assert kvquant.hf.shape.ModelShape.of(model.config).windows.count(24) == 1


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", AFTER)
def test_keys_are_stored_as_they_come_where_that_is_said(name: str, fused: bool) -> None:
    model = tiny(name)
    with pytest.raises(ValueError, match="caches take keys='after-rope'"):
        make(model, "nuq4-1%", fused=fused)
    ids, mask = left_padded([100, 77])
    cache: Any = DynamicCache(config=model.config)
    stored = make(model, "fp32", keys="after-rope", fused=fused)
    longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    for new, part in ((ids, mask), (tokens(2, 1), longer)):
        expected = logits_of(model, new, cache, attention_mask=part)
        found = logits_of(model, new, stored, attention_mask=part)
        seen = part[:, -new.shape[1] :] != 0
        torch.testing.assert_close(found[seen], expected[seen], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", AFTER)
def test_keys_after_rope_are_compressed(name: str) -> None:
    model, ids = tiny(name), tokens(1, 150)
    exact = torch.log_softmax(logits_of(model, ids), -1)
    losses = []
    for spec in ("int8", "nuq4-1%", "nuq2"):
        cache = make(model, spec, keys="after-rope", mode="strict")
        ours = torch.log_softmax(logits_of(model, ids, cache), -1)
        losses.append(float((exact.exp() * (exact - ours)).sum(-1).mean()))
        assert cache.num_compressed_tokens() > 0
    assert 0 < losses[0] < losses[1] < losses[2]
    out = generate(model, ids, make(model, "nuq4-1%", keys="after-rope"))
    assert out.shape == (1, 158)


@pytest.mark.parametrize("name", ["dynamic", "gemma2"])
def test_all_that_makes_caches_knows_the_family(name: str) -> None:
    model = tiny(name)
    keys = "after-rope" if name == "dynamic" else "before-rope"

    class Bytes:
        """A tokenizer of letters."""

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [] if add_special_tokens else [ord(c) % 64 for c in text]

    options: dict[str, Any] = {"max_seq_len": 100, "stride": 0, "max_windows": 1, "keys": keys}
    results = kvquant.evaluate_perplexity(
        model, Bytes(), "So many letters. " * 8, kv=["fp32", "nuq2"], **options
    )
    assert results[0]["kl_mean"] < 1e-4 < results[1]["kl_mean"]
    ids = tokens(1, 100)
    expected = logits_of(model, ids)
    cache = make(model, "nuq2", mode="strict", keys=keys, fused=name != "gemma2")
    compressed = logits_of(model, ids, cache)
    with kvquant.QuantizedModelWrapper(model, "nuq2", keys=keys, precision="f32"):
        torch.testing.assert_close(logits_of(model, ids), compressed, atol=1e-4, rtol=1e-4)
    assert not torch.equal(compressed, expected)
    assert torch.equal(logits_of(model, ids), expected)
    if name == "dynamic":
        with pytest.raises(ValueError, match="caches take keys='after-rope'"):
            kvquant.QuantizedModelWrapper(model, "nuq2").patch()
        assert torch.equal(logits_of(model, ids), expected)


def test_keys_after_rope_have_no_calibration(tmp_path: Path) -> None:
    model, file = tiny("llama"), tmp_path / "x.safetensors"
    text = tmp_path / "a.txt"
    text.write_text("abcdefgh" * 40)

    class Letters:
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [ord(letter) for letter in text]

    kvquant.calibrate(model, text, output=file, tokenizer=Letters(), samples=1, seq_len=64)
    with pytest.raises(ValueError, match="calibrations are of keys before RoPE"):
        make(model, "nuq4-1%", keys="after-rope", calibration=file)
    with pytest.raises(ValueError, match="scaling_factors are of keys before RoPE"):
        make(model, "nuq4", keys="after-rope", scaling_factors=torch.ones(2, 32))
    with pytest.raises(ValueError, match="low-rank keys need the model's RoPE"):
        make(model, "k=pca16,v=fp16", keys="after-rope")
    cache = make(model, "k=fp16,v=pca16", keys="after-rope", calibration=file)
    logits_of(model, tokens(1, 90), cache)


def test_a_softcap_is_for_the_compatibility_path() -> None:
    model, ids = tiny("gemma2-capped"), tokens(1, 60)
    with pytest.raises(ValueError, match=r"attn_logit_softcapping is 50.0, .* fused=False works"):
        make(model, "int8")
    found = logits_of(model, ids, make(model, "fp32", fused=False))
    torch.testing.assert_close(found, logits_of(model, ids), atol=2e-3, rtol=2e-3)


def test_what_layers_that_differ_cannot_do(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("abcdefgh" * 40)

    class Letters:
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [ord(letter) for letter in text]

    options: dict[str, Any] = {"output": tmp_path / "x.safetensors", "tokenizer": Letters()}
    with pytest.raises(ValueError, match="sliding windows of 24 tokens"):
        kvquant.calibrate(tiny("mixed"), text, samples=1, seq_len=64, **options)
    kvquant.calibrate(tiny("mixed"), text, samples=1, seq_len=24, **options)
    with pytest.raises(ValueError, match="attn_logit_softcapping"):
        kvquant.calibrate(tiny("gemma2-capped"), text, samples=1, seq_len=24, **options)
    with pytest.raises(ValueError, match="rope_type is 'longrope'"):
        kvquant.calibrate(tiny("phi3"), text, samples=1, seq_len=24, **options)
    with pytest.raises(ValueError, match="rope_parameters differ between layers"):
        kvquant.ActivationCollector(tiny("gemma3"))
