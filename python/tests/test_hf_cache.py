"""CompressedDynamicCache.from_spec under transformers' models: forward passes and generation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hf_models import (
    ARCHITECTURES,
    embedded,
    generate,
    left_padded,
    logits_of,
    make,
    tiny,
    tokens,
)
from transformers import DynamicCache

BOTH_WAYS = pytest.mark.parametrize("fused", [True, False], ids=["fused", "decoded"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fp16_is_the_dynamic_cache_to_the_bit(name: str) -> None:
    model = tiny(name)
    ids, mask = left_padded([40, 25, 33])
    reference = DynamicCache(config=model.config)
    cache = make(model, "fp16", fused=False)
    for part in (slice(0, 39), slice(39, 40)):
        seen = mask[:, : part.stop]
        expected = logits_of(model, ids[:, part], reference, attention_mask=seen)
        assert torch.equal(logits_of(model, ids[:, part], cache, attention_mask=seen), expected)
    plain = generate(model, ids, attention_mask=mask)
    ours = generate(model, ids, make(model, "fp16", fused=False), attention_mask=mask)
    assert torch.equal(ours, plain)
    assert cache.num_compressed_tokens() == 0


@BOTH_WAYS
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_exact_spec_gives_the_models_own_logits(name: str, fused: bool) -> None:
    model = tiny(name)
    ids = tokens(2, 70)
    cache = make(model, "fp32", fused=fused)
    ours = [logits_of(model, ids[:, part], cache) for part in (slice(0, 50), slice(50, 70))]
    torch.testing.assert_close(torch.cat(ours, 1), logits_of(model, ids), atol=1e-3, rtol=0)
    assert cache.get_seq_length() == 70
    assert torch.equal(generate(model, ids, make(model, "fp32", fused=fused)), generate(model, ids))


@pytest.mark.parametrize("mode", ["as-served", "strict"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fused_attention_is_attention_over_the_decoded_cache(name: str, mode: str) -> None:
    model = tiny(name)
    ids = tokens(1, 220)
    logits = []
    for fused in (True, False):
        cache = make(model, "k=int8,v=nuq4-1%", mode=mode, fused=fused)
        first = logits_of(model, ids[:, :200], cache)
        logits.append(torch.cat([first, logits_of(model, ids[:, 200:], cache)], 1))
        window = 24 if mode == "strict" else 0
        assert cache.num_compressed_tokens() >= (window if name == "mistral" and fused else 128)
    exact = logits_of(model, ids)
    apart, lost = logits[0] - logits[1], logits[1] - exact
    assert float(apart.abs().mean()) < 0.1 * float(lost.abs().mean()) + 1e-3
    if name != "mistral" or mode == "strict":  # whose window is exact as served
        assert float(lost.abs().max()) > 1e-2


@BOTH_WAYS
def test_a_padded_batch_is_each_prompt_alone(fused: bool) -> None:
    model = tiny()
    lengths = [90, 40, 65]
    ids, mask = left_padded(lengths)
    options: dict[str, Any] = {"mode": "strict", "fused": fused}
    together = generate(model, ids, make(model, "nuq4-1%", **options), attention_mask=mask)
    for row, length in enumerate(lengths):
        alone = generate(model, ids[row : row + 1, -length:], make(model, "nuq4-1%", **options))
        assert torch.equal(together[row, -8:], alone[0, -8:])


@BOTH_WAYS
def test_positions_may_count_padding(fused: bool) -> None:
    model = tiny("yarn")
    ids, mask = left_padded([50, 30])
    expected = logits_of(model, ids, attention_mask=mask)  # without position_ids: places
    ours = logits_of(model, ids, make(model, "fp32", fused=fused), attention_mask=mask)
    torch.testing.assert_close(ours[1, 20:], expected[1, 20:], atol=1e-3, rtol=0)
    torch.testing.assert_close(ours[0], expected[0], atol=1e-3, rtol=0)


def test_padding_is_never_stored() -> None:
    model = tiny()
    ids, mask = left_padded([64, 10])
    cache, alone = (make(model, "fp32", num_threads=1) for _ in range(2))
    logits_of(model, ids, cache, attention_mask=mask)
    logits_of(model, ids[:1], alone)
    few = make(model, "fp32")
    logits_of(model, ids[1:, -10:], few)
    assert cache.get_seq_length() == 64
    assert cache.memory_bytes() == alone.memory_bytes() + few.memory_bytes()


def test_padding_behind_scores_the_same() -> None:
    model = tiny()
    ids = tokens(2, 30)
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    ours = logits_of(model, ids, make(model, "fp32"), attention_mask=mask)
    expected = logits_of(model, ids, attention_mask=mask)
    torch.testing.assert_close(ours[1, :20], expected[1, :20], atol=1e-3, rtol=0)


@BOTH_WAYS
def test_beam_search_forks_rows(fused: bool) -> None:
    model = tiny()
    ids, mask = left_padded([30, 22])
    options: dict[str, Any] = {
        "num_beams": 3,
        "num_return_sequences": 3,
        "attention_mask": mask,
        "max_new_tokens": 12,
    }
    expected = generate(model, ids, **options)
    assert torch.equal(generate(model, ids, make(model, "fp32", fused=fused), **options), expected)


def test_sampling_and_several_returned_sequences() -> None:
    model = tiny()
    ids = tokens(1, 30)
    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 4, "top_k": 20}
    results = []
    for cache in (None, make(model, "fp32")):
        torch.manual_seed(5)
        results.append(generate(model, ids, cache, **options))
    assert torch.equal(*results)


@BOTH_WAYS
def test_chunked_prefill_and_several_turns(fused: bool) -> None:
    model = tiny()
    cache = make(model, "fp32", fused=fused)
    first = generate(model, tokens(1, 50), cache, prefill_chunk_size=16)
    assert torch.equal(first, generate(model, tokens(1, 50)))
    turn = torch.cat([first, tokens(1, 20, seed=2)], 1)
    assert torch.equal(generate(model, turn, cache), generate(model, turn))
    assert cache.get_seq_length() == turn.shape[1] + 7  # the last one was not fed


@BOTH_WAYS
def test_crop_goes_back_over_exact_tokens(fused: bool) -> None:
    model = tiny()
    ids = tokens(2, 120)
    cache = make(model, "nuq4-1%,sink=0,recent=64", fused=fused)
    logits_of(model, ids[:, :110], cache)
    logits_of(model, ids[:, 110:115], cache)
    cache.crop(-5)
    assert cache.get_seq_length() == 110
    again = make(model, "nuq4-1%,sink=0,recent=64", fused=fused)
    logits_of(model, ids[:, :110], again)
    ours, expected = (logits_of(model, ids[:, 110:], c) for c in (cache, again))
    assert torch.equal(ours, expected)
    cache.crop(0)
    strict = make(model, "nuq4-1%", mode="strict", fused=fused)
    logits_of(model, ids, strict)
    with pytest.raises(ValueError, match="crop: a row of 120 tokens can't go back to 119"):
        strict.crop(-1)
    assert strict.get_seq_length() == 120
    strict.crop(-120)
    assert strict.get_seq_length() == 0
    logits_of(model, ids, strict)
    with pytest.raises(ValueError, match="negative"):
        strict.crop(5)


@BOTH_WAYS
def test_reset_forgets_everything(fused: bool) -> None:
    model = tiny()
    cache = make(model, "nuq3-1%", mode="strict", fused=fused)
    first = generate(model, tokens(2, 40), cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(generate(model, tokens(2, 40), cache), first)


@pytest.mark.parametrize("spec", ["fp32", "nuq4-1%"])
def test_rows_can_be_repeated_selected_and_copied(spec: str) -> None:
    model = tiny()
    ids, more = tokens(2, 40), tokens(6, 3, seed=2)
    cache = make(model, spec)
    logits_of(model, ids, cache)
    twin = copy.deepcopy(cache)
    cache.batch_repeat_interleave(3)
    ours = logits_of(model, more, cache)
    full = make(model, spec)
    logits_of(model, ids.repeat_interleave(3, 0), full)
    torch.testing.assert_close(ours, logits_of(model, more, full), atol=1e-3, rtol=0)
    cache.batch_select_indices(torch.tensor([0, 5]))
    expected = _continued(model, ids, more, spec)
    torch.testing.assert_close(logits_of(model, more[:2], cache), expected, atol=1e-3, rtol=0)
    assert twin.get_seq_length() == 40  # went its own way
    torch.testing.assert_close(
        logits_of(model, more[[0, 3]], twin), ours[[0, 3]], atol=1e-3, rtol=0
    )


def _continued(model: Any, ids: torch.Tensor, more: torch.Tensor, spec: str) -> torch.Tensor:
    """Logits of more[:2] behind rows 0 and 5 of the repeated batch."""
    cache = make(model, spec)
    logits_of(model, ids, cache)
    logits_of(model, more[[0, 5]], cache)
    return logits_of(model, more[:2], cache)


def test_a_bfloat16_model_stays_one() -> None:
    model = tiny("llama", torch.bfloat16)
    ids = tokens(1, 60)
    for fused in (True, False):
        ours = logits_of(model, ids, make(model, "fp32", fused=fused))
        assert ours.dtype == torch.bfloat16
        exact = logits_of(model, ids).float()
        assert float((ours.float() - exact).abs().mean()) < 0.03 * float(exact.std())


def test_likelihoods_are_scored_through_the_cache() -> None:
    model = embedded()
    ids = torch.randint(3, 4000, (1, 300), generator=torch.Generator().manual_seed(3))
    losses = {}
    for spec in ("fp32", "nuq4-1%", "nuq2"):
        logits = logits_of(model, ids, make(model, spec, mode="strict"))
        losses[spec] = float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]))
    exact = float(torch.nn.functional.cross_entropy(logits_of(model, ids)[0, :-1], ids[0, 1:]))
    assert abs(losses["fp32"] - exact) < 1e-4
    assert 1e-5 < abs(losses["nuq4-1%"] - exact) < abs(losses["nuq2"] - exact)


def test_compression_saves_what_it_should() -> None:
    model = embedded()
    ids = torch.randint(3, 4000, (1, 1024), generator=torch.Generator().manual_seed(3))
    sizes = {}
    for spec in ("fp16", "nuq3-1%"):
        cache = make(model, spec)
        logits_of(model, ids, cache)
        sizes[spec] = cache.memory_bytes()
    assert sizes["fp16"] >= 1024 * 6 * 2 * 2 * 64 * 2
    assert 2.5 < sizes["fp16"] / sizes["nuq3-1%"] < 5.5
