"""QuantizedModelWrapper: patched models read compressed caches, unpatched ones are as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kvquant
import pytest
import torch
from hf_models import config_of, generate, left_padded, logits_of, make, tiny, tokens
from kvquant.hf import ActivationCollector, QuantizedModelWrapper
from kvquant.hf.attach import is_attached
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM


def fresh(name: str = "llama") -> Any:
    model = LlamaForCausalLM(config_of(name)).requires_grad_(False).eval()
    model.load_state_dict(tiny(name).state_dict())
    return model


def wrap(model: Any, codebook: str = "nuq3", scaling_factors: Any = None) -> QuantizedModelWrapper:
    return QuantizedModelWrapper(model, codebook, scaling_factors, precision="f32", num_threads=2)


def test_unpatching_restores_every_bit() -> None:
    model = fresh()
    ids = tokens(2, 60)
    before, hooks = logits_of(model, ids), _hooks(model)
    wrapper = wrap(model)
    wrapper.patch()
    wrapper.patch()
    patched = logits_of(model, ids)
    assert torch.equal(wrapper(ids).logits, patched)
    wrapper.unpatch()
    wrapper.unpatch()
    assert torch.equal(logits_of(model, ids), before)
    assert float((patched - before).abs().mean()) > 0.01
    assert _hooks(model) == hooks
    assert model.config._attn_implementation == "sdpa"


def _hooks(model: Any) -> tuple[int, int]:
    return len(model.model._forward_pre_hooks), len(model.model._forward_hooks)


def test_patched_passes_use_a_strict_cache() -> None:
    model = fresh()
    ids, mask = left_padded([50, 31])
    expected = logits_of(model, ids, make(model, "nuq3", mode="strict"), attention_mask=mask)
    with wrap(model) as wrapper:
        assert wrapper.is_patched
        assert torch.equal(logits_of(model, ids, attention_mask=mask), expected)
        assert torch.equal(model(ids, attention_mask=mask, use_cache=False).logits, expected)
    assert not wrapper.is_patched
    assert is_attached(model)  # make() did that before


def test_generation_goes_through_the_compressed_cache() -> None:
    model = fresh()
    ids, mask = left_padded([70, 31])
    for options in ({}, {"num_beams": 2}):
        cache = make(model, "nuq4-1%", mode="strict")
        expected = generate(model, ids, cache, attention_mask=mask, **options)
        with wrap(model, "nuq4-1%") as wrapper:
            ours = wrapper.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=8,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
                **options,
            )
        assert torch.equal(ours, expected)


def test_an_exact_codec_changes_nothing_and_a_poor_one_much() -> None:
    model = fresh()
    ids = tokens(1, 100)
    plain, errors = logits_of(model, ids), []
    for codebook in ("fp32", "nuq4", "nuq3", "nuq2"):
        with wrap(model, codebook):
            errors.append(float((logits_of(model, ids) - plain).abs().mean()))
    assert errors[0] < 1e-4
    assert 0.01 < errors[1] < errors[2] < errors[3]


def test_an_exception_leaves_nothing_patched() -> None:
    model = fresh()
    ids, hooks = tokens(1, 10), _hooks(model)
    before = logits_of(model, ids)
    with pytest.raises(ZeroDivisionError), wrap(model):
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="position 1"):
        wrap(model, "nuq9").patch()
    with pytest.raises(ValueError, match="model_type is 'gpt2'"):
        wrap(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9))).patch()
    with pytest.raises(FileNotFoundError, match="Calibration file not found"):
        QuantizedModelWrapper(model, "nuq3", calibration="none.safetensors").patch()
    with pytest.raises(ValueError, match="hole"), wrap(model):
        logits_of(model, ids, attention_mask=torch.tensor([[1, 0] * 5]))
    assert _hooks(model) == hooks
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(logits_of(model, ids), before)


def test_what_a_patched_model_refuses() -> None:
    model = fresh()
    old = DynamicCache()
    logits_of(model, tokens(1, 5), old)
    with wrap(model):
        with pytest.raises(ValueError, match=r"DynamicCache of 5 tokens from before patch"):
            logits_of(model, tokens(1, 1), old)
        with pytest.raises(RuntimeError, match="another QuantizedModelWrapper"):
            wrap(model).patch()


def scales_of(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """For each layer, from the keys of a text."""
    collector = ActivationCollector(model, max_samples=1)
    collector.install_hooks()
    logits_of(model, ids)
    collector.increment_sample_count()
    collector.remove_hooks()
    rule = kvquant.ScaleRule.max_abs()
    return [
        kvquant.estimate_scaling_factors(collector.get_keys(layer_idx=i), None, rule)
        for i in range(model.config.num_hidden_layers)
    ]


@pytest.mark.parametrize("codebook", ["nuq4", "nuq4-1%", "int8"])
def test_scaling_factors_take_the_place_of_fitted_ranges(codebook: str, tmp_path: Path) -> None:
    model = fresh()
    ids = tokens(2, 60)
    before, hooks = logits_of(model, ids), _hooks(model)
    with wrap(model, codebook):
        fitted = logits_of(model, ids)
    scales = scales_of(model, ids)
    kvquant.save_per_layer_scaling_factors(tmp_path, scales)
    errors = []
    for factors in (
        scales,
        kvquant.load_per_layer_scaling_factors(tmp_path),
        torch.ones(2, 32),
        [torch.ones(2, 32)] * 2,
    ):
        with wrap(model, codebook, scaling_factors=factors):
            patched = logits_of(model, ids)
            assert not torch.equal(patched, fitted)
            errors.append(float((patched - before).abs().mean()))
        assert torch.equal(logits_of(model, ids), before)
        assert _hooks(model) == hooks
    assert errors[0] == errors[1]
    assert errors[2] == errors[3]
    assert errors[0] > 0
    if codebook != "nuq4-1%":  # which keeps exactly what is larger than its factor
        assert errors[2] > 2 * errors[0]


def test_scaling_factors_that_do_not_fit_are_refused() -> None:
    model = fresh()
    before, hooks = logits_of(model, tokens(1, 10)), _hooks(model)
    ones = torch.ones(2, 32)
    for factors, message in (
        ([ones] * 3, "3 layers, not the cache's 2"),
        (torch.ones(32, 2), r"layer 0 are \[32, 2\], not .* = \[2, 32\]"),
        ([ones, torch.ones(4, 16)], r"layer 1 are \[4, 16\]"),
        (torch.ones(32), "shape"),
        ([ones, -ones], "layer 1: head 0, channel 0 is -1, not between"),
        (ones * torch.nan, "channel 0 is -?nan"),
    ):
        with pytest.raises(ValueError, match=message):
            wrap(model, scaling_factors=factors).patch()
    with pytest.raises(ValueError, match="keys of k=fp16,v=nuq3 have no scales"):
        wrap(model, "k=fp16,v=nuq3", scaling_factors=ones).patch()
    with pytest.raises(ValueError, match="needs a whole calibration: codec 'pca8"):
        wrap(model, "k=nuq3,v=pca8", scaling_factors=ones).patch()
    assert _hooks(model) == hooks
    assert torch.equal(logits_of(model, tokens(1, 10)), before)
