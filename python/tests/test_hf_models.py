"""Loading, collecting, scoring: what of kvquant.hf works on whole models."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kvquant
import pytest
import torch
from hf_models import EMBEDDED, ROOT, config_of, embedded, logits_of, tiny, tokens
from kvquant.hf import ActivationCollector, load_model, load_quantized_model
from transformers import AutoModelForCausalLM

SMOLLM2 = Path(os.environ.get("KVQUANT_MODELS", ROOT / "models")) / "smollm2"


def test_models_are_loaded_from_directories() -> None:
    model, tokenizer = load_model(EMBEDDED)
    assert torch.equal(logits_of(model, tokens(1, 9)), logits_of(embedded(), tokens(1, 9)))
    text = "The lighthouse stood"
    native = kvquant.Model.load("embedded", num_threads=1).tokenizer
    assert tokenizer.encode(text) == native.encode(text, add_special_tokens=False)
    with pytest.raises(kvquant.IoError, match="nowhere"):
        load_model("/nowhere/model")


def test_quantized_models_are_patched() -> None:
    wrapper = load_quantized_model("embedded", "nuq3", sparsity=0.01, block_size=128, num_threads=2)
    ids = tokens(1, 60)
    compressed = logits_of(wrapper.model, ids)
    wrapper.unpatch()
    plain = logits_of(wrapper.model, ids)
    assert torch.equal(plain, logits_of(embedded(), ids))
    assert 1e-3 < float((compressed - plain).abs().mean()) < 1
    with pytest.raises(ValueError, match="prefill_quant"):
        load_quantized_model("embedded", prefill_quant=False)
    wrapper = load_quantized_model("embedded", sparsity=0.02)
    assert str(wrapper.spec) == "nuq3-2%"
    wrapper.unpatch()
    with pytest.raises(ValueError, match="sparsity is for nuq2"):
        load_quantized_model("embedded", "int8", sparsity=0.01)


def test_smollm2_is_loaded_from_its_file() -> None:
    files = sorted(SMOLLM2.glob("*.gguf"))
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if not files or missing:
        pytest.skip(f"no SmolLM2 in {SMOLLM2}" if not files else f"no package {missing[0]}")
    model, tokenizer = load_model(files[0])
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    cache = kvquant.CompressedDynamicCache.from_spec(model, "nuq4-1%")
    out = model.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0])


def test_the_collector_gathers_what_the_engines_does() -> None:
    model, ids = embedded(), torch.arange(20, 60)[None]
    collector = kvquant.ActivationCollector(model, max_samples=1)
    assert isinstance(collector, ActivationCollector)
    collector.install_hooks()
    for part in (ids[:, :30], ids[:, 30:]):
        cache: Any = cache if part.shape[1] == 10 else None  # noqa: F821
        cache = model(part, past_key_values=cache, use_cache=True).past_key_values
    collector.increment_sample_count()
    model(ids)  # one too many
    collector.increment_sample_count()
    collector.remove_hooks()
    model(ids)
    assert collector.num_samples == 1
    native = kvquant.Model.load("embedded", precision="f32", num_threads=2)
    other = kvquant.ActivationCollector(native, max_samples=1)
    assert isinstance(other, kvquant._core.ActivationCollector)
    other.install_hooks()
    kvquant.Session(native).forward(ids[0].tolist())
    other.increment_sample_count()
    for layer in (0, 5):
        for name in ("get_keys", "get_values"):
            ours = getattr(collector, name)(layer_idx=layer)
            theirs = torch.from_numpy(getattr(other, name)(layer_idx=layer))
            assert ours.shape == theirs.shape == (1, 2, 40, 64)
            assert float((ours - theirs).abs().max()) < 0.05 * float(theirs.abs().max())


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_collected_keys_are_those_that_are_rotated(name: str) -> None:
    model, ids = tiny(name), tokens(2, 12)
    collector = ActivationCollector(model, max_samples=2)
    collector.install_hooks()
    cache = model(ids, use_cache=True).past_key_values
    collector.increment_sample_count()
    collector.remove_hooks()
    from kvquant.hf.rope import Rope, rotate

    angles = Rope(model.config).angles(torch.arange(12)[None], torch.float32)
    for layer in range(2):
        rotated = rotate(collector.get_keys(layer), angles)
        torch.testing.assert_close(rotated, cache.layers[layer].keys, atol=1e-4, rtol=0)
        assert torch.equal(collector.get_values(layer), cache.layers[layer].values)


def test_what_the_collector_refuses() -> None:
    model = AutoModelForCausalLM.from_config(config_of("llama"))
    collector = ActivationCollector(model, max_samples=3)
    with pytest.raises(ValueError, match="no complete sample"):
        collector.get_keys(0)
    collector.install_hooks()
    with pytest.raises(ValueError, match="installed already"):
        collector.install_hooks()
    with pytest.raises(ValueError, match="padding"):
        model(tokens(1, 3), attention_mask=torch.tensor([[0, 1, 1]]))
    for length in (3, 4):
        model(tokens(1, length))
        collector.increment_sample_count()
    collector.remove_hooks()
    with pytest.raises(ValueError, match="lengths from 3 to 4"):
        collector.get_keys(0)
    with pytest.raises(ValueError, match="layer_idx is 2"):
        collector.get_keys(2)
    with pytest.raises(ValueError, match="max_samples is 0"):
        ActivationCollector(model, 0)


def test_perplexity_is_what_the_engine_finds() -> None:
    model, native = embedded(), kvquant.Model.load("embedded", num_threads=2)
    tokenizer = (
        native.tokenizer
    )  # transformers' puts no BOS before a text, for all its configuration
    specs: list[str | kvquant.CacheSpec] = ["fp16", "nuq3-1%"]
    options: dict[str, Any] = {"max_seq_len": 256, "stride": 128, "max_windows": 3, "kv": specs}
    ours = kvquant.evaluate_perplexity(model, tokenizer, **options)
    theirs = kvquant.evaluate_perplexity(native, **options)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for same in ("tokens", "spec", "spec_resolved", "mode", "text", "compressed_tokens"):
            assert a[same] == b[same]
        assert a["perplexity"] == pytest.approx(b["perplexity"], rel=0.02)
        assert a["true_bits"] == pytest.approx(b["true_bits"], rel=0.1)
    assert ours[0]["kl_max"] == ours[0]["ppl_delta"] == 0
    assert ours[0]["top1_agreement"] == 1
    assert ours[1]["kl_mean"] == pytest.approx(theirs[1]["kl_mean"], rel=0.3)
    single = kvquant.evaluate_perplexity(model, tokenizer, **{**options, "kv": "fp16"})
    assert single == ours[0]


def test_what_perplexity_refuses() -> None:
    model, tokenizer = embedded(), load_model(EMBEDDED)[1]
    with pytest.raises(ValueError, match="tokenizer is None"):
        kvquant.evaluate_perplexity(model)
    with pytest.raises(ValueError, match="max_seq_len is 4096, and the model's context 2048"):
        kvquant.evaluate_perplexity(model, tokenizer, max_seq_len=4096)
    with pytest.raises(ValueError, match="a stride of 300 and windows of 256"):
        kvquant.evaluate_perplexity(model, tokenizer, max_seq_len=256, stride=300)
    with pytest.raises(ValueError, match="the text has 1 tokens"):
        kvquant.evaluate_perplexity(model, tokenizer, "a")


def test_kvquant_alone_imports_no_torch() -> None:
    code = "import sys, kvquant; assert 'torch' not in sys.modules; kvquant.IdentityCompressor"
    subprocess.run([sys.executable, "-c", code + "; assert 'torch' in sys.modules"], check=True)
    assert "CompressedDynamicCache" in dir(kvquant)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kvquant.nothing
