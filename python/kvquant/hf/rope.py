"""RoPE undone and done again: transformers hands keys over rotated, caches store them before it."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from kvquant.hf.shape import BEFORE_ROPE

Angles = tuple[torch.Tensor, torch.Tensor]  # cos and sin, float32 [batch, 1, seq_len, head_dim / 2]


class Rope:
    """The rotation of a model: two halves of a head, as all of transformers' models do it.

    Where keys are stored after RoPE, none: all frequencies are 0, and nothing is undone or done.
    """

    def __init__(self, config: Any, keys: str = BEFORE_ROPE, head_dim: int = 0) -> None:
        if keys == BEFORE_ROPE:
            embedding = LlamaRotaryEmbedding(config)  # those of the other models compute the same
            self.frequencies = embedding.inv_freq.detach().cpu().float()
            self.attention_scaling = float(embedding.attention_scaling)
        else:
            self.frequencies = torch.zeros(head_dim // 2)
            self.attention_scaling = 1.0

    def angles(self, positions: torch.Tensor, dtype: torch.dtype) -> Angles:
        """What a model of this dtype multiplies by at positions [batch, seq_len]."""
        angles = positions.cpu()[:, None, :, None].float() * self.frequencies
        cos, sin = (t * self.attention_scaling for t in (angles.cos(), angles.sin()))
        return cos.to(dtype).float(), sin.to(dtype).float()


def rotate(x: torch.Tensor, angles: Angles) -> torch.Tensor:
    """Float32 rows of x [batch, num_heads, seq_len, head_dim] as they are at their positions."""
    cos, sin = angles
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def unrotate(x: torch.Tensor, angles: Angles) -> torch.Tensor:
    """The x that rotate turned into this; a scaling of the angles is undone as well."""
    cos, sin = angles
    norm = cos.square() + sin.square()
    return rotate(x, (cos / norm, -sin / norm))
