"""Masks of four dimensions: causal ones do what those of two do, others are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_models import left_padded, logits_of, make, tiny, tokens
from kvquant.hf.masks import plain_mask

LOWEST = torch.finfo(torch.float32).min


def causal(mask: torch.Tensor, num_new: int, window: int = 0) -> torch.Tensor:
    """Bool [batch, 1, num_new, width] of a mask [batch, width]."""
    width = mask.shape[1]
    query, key = torch.arange(width - num_new, width)[:, None], torch.arange(width)[None]
    seen = (key <= query) & ((key > query - window) if window else True)
    return (seen & (mask[:, None] != 0))[:, None]


def added(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, LOWEST)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("as_numbers", [True, False])
def test_a_causal_mask_is_one_of_padding(fused: bool, as_numbers: bool) -> None:
    model = tiny()
    ids, mask = left_padded([90, 71])
    longer = torch.cat([mask, torch.ones(2, 3, dtype=torch.long)], 1)
    caches = [make(model, "nuq3-1%", fused=fused) for _ in range(2)]
    for new, part in ((ids, mask), (tokens(2, 3), longer)):
        four = causal(part, new.shape[1])
        expected = logits_of(
            model, new, caches[0], attention_mask=part, position_ids=_places(part, new)
        )
        found = logits_of(
            model, new, caches[1], attention_mask=added(four) if as_numbers else four,
            position_ids=_places(part, new),
        )  # fmt: skip
        seen = part[:, -new.shape[1] :] != 0
        torch.testing.assert_close(found[seen], expected[seen])
    assert caches[0].get_seq_length() == caches[1].get_seq_length() == 93


def _places(mask: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return torch.arange(mask.shape[1] - new.shape[1], mask.shape[1])[None]


def test_masks_of_a_window_belong_to_models_with_one() -> None:
    model, ids = tiny("mistral"), tokens(1, 60)  # a window of 24
    ones = torch.ones(1, 60, dtype=torch.long)
    expected = logits_of(model, ids, make(model, "int8"))
    found = logits_of(model, ids, make(model, "int8"), attention_mask=causal(ones, 60, window=24))
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="isn't causal in a sliding window of 24: query 24"):
        logits_of(model, ids, make(model, "int8"), attention_mask=causal(ones, 60))
    with pytest.raises(ValueError, match="isn't causal: query 24"):
        logits_of(tiny(), ids, make(tiny(), "int8"), attention_mask=causal(ones, 60, window=24))


def test_models_of_both_kinds_of_layers_take_a_mask_for_each() -> None:
    model = tiny("mixed")
    ids, mask = left_padded([50, 41])
    masks = {
        "full_attention": causal(mask, 50),
        "sliding_attention": causal(mask, 50, window=24),
    }
    expected = logits_of(model, ids, make(model, "int8"), attention_mask=mask)
    found = logits_of(model, ids, make(model, "int8"), attention_mask=masks)
    seen = mask != 0
    torch.testing.assert_close(found[seen], expected[seen], atol=1e-3, rtol=1e-3)
    swapped = {
        "full_attention": masks["sliding_attention"],
        "sliding_attention": masks["full_attention"],
    }
    with pytest.raises(ValueError, match="isn't causal"):
        logits_of(model, ids, make(model, "int8"), attention_mask=swapped)
    with pytest.raises(ValueError, match="attention_mask is for chunked_attention"):
        logits_of(model, ids, make(model, "int8"), attention_mask={"chunked_attention": mask})


def test_what_is_known_of_places_decides() -> None:
    one = torch.ones(1, 5, dtype=torch.long)
    spans, full = [(0, 0)], [0, 0]
    assert plain_mask(causal(one, 5), spans, 0, full).tolist() == [[1] * 5]  # type: ignore[union-attr]
    padded = torch.tensor([[0, 0, 1, 1, 1]])
    everything = causal(padded, 5)
    everything[0, 0, :2] = True  # queries of padding, as some backends need them
    assert plain_mask(everything, spans, 0, full).tolist() == padded.tolist()  # type: ignore[union-attr]
    # One new token behind two of padding and two that are known.
    step = causal(padded, 1)
    assert plain_mask(step, [(2, 4)], 4, full).tolist() == padded.tolist()  # type: ignore[union-attr]
    cases: list[tuple[Any, str]] = [
        (step, "row 0 isn't causal"),  # it hides a token that is held
        (causal(one, 1)[..., :4], r"not \[1, 1, queries, tokens so far and new = 4 \+ queries\]"),
        (torch.cat([causal(one, 1), ~causal(one, 1)], 1), "differs between heads"),
        (torch.full((1, 1, 1, 5), 0.5), "adds numbers"),
        ("causal", "compressed caches want"),
    ]
    for mask, message in cases:
        with pytest.raises(ValueError, match=message):
            plain_mask(mask, [(0, 4)], 4, full)
