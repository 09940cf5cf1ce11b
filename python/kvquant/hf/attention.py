"""The attention function "kvquant": it reads the compressed bytes, by the handle of update()."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from kvquant.hf.store import Store

NAME = "kvquant"


@dataclass(frozen=True)
class Handle:
    """What the keys that update() returns carry."""

    store: Store
    layer: int


def with_handle(key: torch.Tensor, handle: Handle) -> torch.Tensor:
    """The same keys as a new tensor that carries the handle."""
    carrier = key.view(key.shape)
    carrier.kvquant_handle = handle  # type: ignore[attr-defined]
    return carrier


def kvquant_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of transformers' AttentionInterface; the mask is known to the cache."""
    handle: Handle | None = getattr(key, "kvquant_handle", None)
    if handle is None:
        raise RuntimeError(
            f"the attention '{NAME}' works with a fused CompressedDynamicCache that was made with "
            "from_spec(model), which switches it on; there is none"
        )
    if dropout or kwargs.get("softcap") or kwargs.get("output_attentions"):
        raise ValueError(f"the attention '{NAME}' has no dropout, softcap or output_attentions")
    return handle.store.attend(handle.layer, query, key, value, scaling), None


# Without a mask function of this name transformers makes no masks for it.
AttentionInterface.register(NAME, kvquant_attention)
