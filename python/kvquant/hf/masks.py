"""Masks [batch, 1, queries, tokens] that say no more than causal attention to a padded batch does.

Compressed caches compute attention from rows of consecutive tokens; other masks are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

KINDS = {"full_attention": False, "sliding_attention": True}  # whether there is a window


def plain_mask(
    mask: Any, spans: Sequence[tuple[int, int]], places: int, windows: Sequence[int]
) -> torch.Tensor | None:
    """The mask [batch, places + queries] that a causal one stands for; others as they are.

    mask: also a dict of one for each kind of layer, as transformers makes it. spans: the places
    [begin, end) of each row that hold tokens so far, of `places`. windows: of each layer, 0: none.
    ValueError where the mask is none of this kind.
    """
    if isinstance(mask, dict):
        masks = [_of_kind(mask, kind, windows) for kind in sorted(mask)]
        found = [plain_mask(part, spans, places, part_windows) for part, part_windows in masks]
        if any(not _same(part, found[0]) for part in found[1:]):
            raise ValueError("attention_mask: those of the kinds of layers have other tokens")
        return found[0] if found else None
    if mask is None or (isinstance(mask, torch.Tensor) and mask.dim() == 2):
        return mask
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        found_kind = f"{mask.dim()} dimensions" if isinstance(mask, torch.Tensor) else type(mask)
        raise ValueError(
            f"attention_mask has {found_kind}; compressed caches want one of [batch, seq_len], or "
            "a causal one of [batch, 1, queries, seq_len]"
        )
    return _of_causal(_visible(mask, len(spans), places), spans, places, windows)


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _of_kind(mask: dict[str, Any], kind: str, windows: Sequence[int]) -> tuple[Any, list[int]]:
    if kind not in KINDS:
        raise ValueError(f"attention_mask is for {kind}; compressed caches know {', '.join(KINDS)}")
    return mask[kind], [window for window in windows if (window > 0) == KINDS[kind]]


def _visible(mask: torch.Tensor, batch: int, places: int) -> torch.Tensor:
    """Bool [batch, queries, places + queries]: of numbers, 0 is seen, the lowest ones aren't."""
    mask = mask.detach().cpu()
    num_new = mask.shape[2]
    if mask.shape[0] not in (1, batch) or mask.shape[3] != places + num_new:
        raise ValueError(
            f"attention_mask has the shape {list(mask.shape)}, not [{batch}, 1, queries, tokens so "
            f"far and new = {places} + queries]"
        )
    if mask.dtype != torch.bool:
        seen = mask == 0
        if not bool((seen | (mask < -1e4)).all()):
            raise ValueError(
                "attention_mask of 4 dimensions adds numbers to scores; compressed caches know 0 "
                "(seen) and the lowest ones (not seen)"
            )
        mask = seen
    if not bool((mask == mask[:, :1]).all()):
        raise ValueError("attention_mask differs between heads")
    return mask[:, 0].expand(batch, -1, -1)


def _of_causal(
    visible: torch.Tensor, spans: Sequence[tuple[int, int]], places: int, windows: Sequence[int]
) -> torch.Tensor:
    batch, num_new, width = visible.shape
    query, key = torch.arange(places, width)[:, None], torch.arange(width)[None]
    causal = key <= query
    # A token sees itself. Queries of padding see nothing or, as some backends need it, everything.
    sees_future = (visible & ~causal).any(-1)
    new = visible[:, torch.arange(num_new), torch.arange(places, width)] & ~sees_future
    tokens = torch.zeros(batch, width, dtype=torch.bool)
    tokens[:, places:] = new
    for row, (begin, end) in enumerate(spans):
        tokens[row, begin:end] = True
    for window in set(windows):
        seen = causal & (key > query - window) if window else causal
        expected = seen & tokens[:, None]
        wrong = ((visible != expected).any(-1) & new).nonzero().tolist()
        wrong += [[row, at] for row, at in sees_future.nonzero().tolist()
                  if not bool(visible[row, at].all())]  # fmt: skip
        if wrong:
            row, at = wrong[0]
            of_window = f" in a sliding window of {window}" if window else ""
            raise ValueError(
                f"attention_mask of row {row} isn't causal{of_window}: query {at} doesn't see the "
                "tokens up to its own, and these alone; compressed caches know no other masks"
            )
    return tokens.long()
