"""Bad input to compressed caches: a clear exception, and the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import config_of, generate, left_padded, logits_of, make, tiny, tokens
from kvquant.hf import CompressedDynamicCache, attach, detach
from transformers import BertConfig, BertModel, GPT2Config, LlamaConfig, LlamaForCausalLM


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]]), "row 0 has a hole"),
        (torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1]]), "row 1 has a hole"),
        (torch.ones(2, 5), r"shape \[2, 5\], not .* = \[2, 4\]"),
        (torch.ones(3, 4), r"shape \[3, 4\]"),
        (torch.ones(2, 1, 4, 4), "adds numbers to scores"),
        (torch.ones(2, 1, 4, 4, dtype=torch.bool), "row 0 isn't causal: query 3"),
        (torch.ones(2, 4, 4), "3 dimensions"),
    ],
)
def test_masks_that_break_their_rules(mask: torch.Tensor, message: str, fused: bool) -> None:
    model = tiny()
    cache = make(model, "nuq3-1%", fused=fused)
    with pytest.raises(ValueError, match=message):
        logits_of(model, tokens(2, 4), cache, attention_mask=mask)
    assert model.config._attn_implementation == "sdpa"
    assert cache.get_seq_length() == 0
    logits_of(model, tokens(2, 4), cache)


def test_masks_and_positions_go_on() -> None:
    model = tiny()
    ids, mask = left_padded([8, 5])
    cache = make(model, "nuq3-1%")
    logits_of(model, ids, cache, attention_mask=mask)
    next_mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "attention_mask is None, but the cache holds a padded batch"),
        ({"attention_mask": torch.ones(2, 9)}, "row 1 isn't what it was"),
        ({"attention_mask": next_mask, "position_ids": torch.tensor([[11]])}, "go on one by one"),
        ({"attention_mask": next_mask, "position_ids": torch.zeros(3, 1)}, "position_ids has the"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            logits_of(model, tokens(2, 1), cache, **options)
    with pytest.raises(ValueError, match="a batch of 2, the inputs one of 3"):
        logits_of(model, tokens(3, 1), cache)
    logits_of(model, tokens(2, 1), cache, attention_mask=next_mask)
    assert cache.get_seq_length() == 9


def test_a_hole_behind_padding_at_the_end() -> None:
    model = tiny()
    cache = make(model, "nuq3-1%")
    logits_of(model, tokens(1, 3), cache, attention_mask=torch.tensor([[1, 1, 0]]))
    with pytest.raises(ValueError, match="hole"):
        logits_of(model, tokens(1, 1), cache, attention_mask=torch.tensor([[1, 1, 0, 1]]))


def test_caches_of_another_model() -> None:
    small, other = tiny("llama"), tiny("qwen3")
    attach(other)
    with pytest.raises(ValueError, match="made for another model"):
        logits_of(other, tokens(1, 4), make(small, "nuq3-1%"))
    assert other.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("fused", [True, False])
def test_models_that_are_not_attached(fused: bool) -> None:
    model = LlamaForCausalLM(config_of("llama")).requires_grad_(False)
    cache = make(model.config, "nuq3-1%", fused=fused)
    with pytest.raises(RuntimeError, match="attach"):
        logits_of(model, tokens(1, 4), cache)
    attach(model)
    attach(model)
    logits_of(model, tokens(1, 4), cache)
    detach(model)
    with pytest.raises(RuntimeError, match="attach"):
        logits_of(model, tokens(1, 1), cache)


def test_tensors_that_do_not_fit() -> None:
    model = tiny()
    cases: list[tuple[Any, str]] = [
        (torch.zeros(1, 3, 4, 32), r"key has the shape \[1, 3, 4, 32\], not .*\[1, 2, 4, 32\]"),
        (torch.zeros(1, 2, 4, 64), "head_dim"),
        (torch.zeros(1, 2, 5, 32), "seq_len"),
        (torch.zeros(1, 2, 4, 32, dtype=torch.float64), "float64"),
    ]
    for key, message in cases:
        cache = make(model, "nuq3-1%", fused=False)
        cache.begin(model.config, tokens(1, 4), None, None)
        with pytest.raises(ValueError, match=message):
            cache.update(key, key, 0)
    cache.begin(model.config, tokens(1, 4), None, None)
    with pytest.raises(RuntimeError, match="layer 1 comes where layer 0 is due"):
        cache.update(torch.zeros(1, 2, 4, 32), torch.zeros(1, 2, 4, 32), 1)
    with pytest.raises(ValueError, match="layer 2 of a cache of 2 layers"):
        cache.update(torch.zeros(1, 2, 4, 32), torch.zeros(1, 2, 4, 32), 2)


@pytest.mark.parametrize("fused", [True, False])
def test_a_pass_that_was_broken_off(fused: bool) -> None:
    model = tiny()
    cache = make(model, "nuq3-1%", fused=fused)
    layer = model.model.layers[1].self_attn
    handle = layer.register_forward_pre_hook(_fail)
    with pytest.raises(ZeroDivisionError):
        logits_of(model, tokens(1, 4), cache)
    handle.remove()
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(RuntimeError, match="broken off behind layer 0"):
        logits_of(model, tokens(1, 4), cache)
    cache.reset()
    logits_of(model, tokens(1, 4), cache)


def _fail(*_: Any) -> None:
    raise ZeroDivisionError


def test_activations_that_are_not_finite() -> None:
    model = LlamaForCausalLM(config_of("llama")).requires_grad_(False)
    model.model.layers[0].self_attn.v_proj.weight[0, 0] = float("nan")
    import kvquant

    with pytest.raises(kvquant.FormatError, match="layer 0"):
        logits_of(model, tokens(1, 4), make(model, "nuq3-1%"))
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spec": "nuq9"}, "position 1"),
        ({"mode": "loose"}, "'loose'"),
        ({"spec": "v=pca16"}, "calibration"),
        ({"spec": "v=pca64"}, "64"),
        ({"spec": "v=pca16", "fused": False}, "calibration"),
        ({"keys": "rotated"}, "keys is 'rotated'"),
        ({"spec": "nuq3,layers=5-6:fp16"}, "layer"),
        ({"precision": "f64"}, "'f64'"),
    ],
)
def test_options_that_break_their_rules(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompressedDynamicCache.from_spec(tiny(), **options)


def test_calibration_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Calibration file not found: .*full path"):
        make(tiny(), "v=pca16", calibration=tmp_path / "none.safetensors")


def test_models_that_caches_do_not_know() -> None:
    with pytest.raises(ValueError, match="model_type is 'gpt2'"):
        make(GPT2Config(), "nuq3")
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ValueError, match="rope_type is 'dynamic'"):
        make(LlamaConfig(rope_parameters=rope), "nuq3")
    bert = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    with pytest.raises(ValueError, match="Model doesn't have past_key_values"):
        attach(_WithoutCache(bert))
    with pytest.raises(ValueError, match="no transformers model"):
        attach(torch.nn.Linear(2, 2))


class _WithoutCache(BertModel):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return input_ids


def test_the_attention_needs_its_cache() -> None:
    model = LlamaForCausalLM(config_of("llama")).requires_grad_(False)
    model.set_attn_implementation("kvquant")
    with pytest.raises(RuntimeError, match="there is none"):
        generate(model, tokens(1, 4))
