"""Compressors: what a CompressedDynamicCache of compressors stores for keys or values of a layer.

They work on keys and values as transformers hands them over (keys after RoPE), in torch, on any
device. The engine's own formats are faster and smaller: CompressedDynamicCache.from_spec.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

Stored = tuple[torch.Tensor, ...]  # each [batch, num_kv_heads, num_tokens, ...]


@runtime_checkable
class Compressor(Protocol):
    """One side of one layer; tokens are compressed one by one."""

    def compress(self, x: torch.Tensor) -> Stored:
        """What is kept of x [batch, num_kv_heads, num_tokens, head_dim]."""

    def decompress(self, stored: Stored) -> torch.Tensor:
        """[batch, num_kv_heads, num_tokens, head_dim]."""


class IdentityCompressor:
    """Keeps tensors as they are."""

    def compress(self, x: torch.Tensor) -> Stored:
        """(x,)."""
        return (x,)

    def decompress(self, stored: Stored) -> torch.Tensor:
        """What compress was given."""
        return stored[0]


@dataclass(frozen=True)
class LowRankCompressor:
    """Coordinates along calibrated components: z = basis (x - mean), per KV head.

    mean [num_kv_heads, head_dim], basis [num_kv_heads, rank, head_dim] with orthonormal rows.
    quantize_bits: 8 or 4 for integers with a scale and a zero point per token and head, packed;
    None for fp16.
    """

    mean: torch.Tensor
    basis: torch.Tensor
    quantize_bits: int | None = None

    def compress(self, x: torch.Tensor) -> Stored:
        """Coordinates [batch, num_kv_heads, num_tokens, rank], or codes, scales and zeros."""
        if x.shape[1] != self.mean.shape[0] or x.shape[3] != self.mean.shape[1]:
            raise ValueError(
                f"a compressor of {list(self.mean.shape)} = [num_kv_heads, head_dim] doesn't fit "
                f"tensors of {list(x.shape)} = [batch, num_kv_heads, num_tokens, head_dim]"
            )
        mean, basis = self.mean.to(x.device), self.basis.to(x.device)
        z = (x.float() - mean[:, None]) @ basis.transpose(1, 2)
        if self.quantize_bits is None:
            return (z.half(),)
        return _quantize(z, self.quantize_bits)

    def decompress(self, stored: Stored) -> torch.Tensor:
        """What z stands for: mean + basis^T z."""
        rank = self.basis.shape[1]
        z = stored[0].float() if self.quantize_bits is None else _dequantize(stored, rank)
        mean, basis = self.mean.to(z.device), self.basis.to(z.device)
        return z @ basis + mean[:, None]


def _quantize(z: torch.Tensor, bits: int) -> Stored:
    """Codes uint8 (two in a byte at 4 bits), scales and zeros fp16 with a last extent of 1."""
    levels = 2**bits - 1
    low, high = z.amin(-1, keepdim=True), z.amax(-1, keepdim=True)
    zero, scale = low.half(), ((high - low) / levels).half()
    step = scale.float().clamp_min(torch.finfo(torch.float16).tiny)
    codes = ((z - zero.float()) / step).round().clamp(0, levels).to(torch.uint8)
    if bits == 4:
        codes = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2))
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    return codes, scale, zero


def _dequantize(stored: Stored, rank: int) -> torch.Tensor:
    codes, scale, zero = stored
    if codes.shape[-1] < rank:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)[..., :rank]
    return codes.float() * scale.float() + zero.float()
