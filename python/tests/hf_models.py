"""Small transformers models with fixed weights, and what the tests of kvquant.hf ask of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from kvquant.hf import CompressedDynamicCache
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

ROOT = Path(__file__).resolve().parent.parent.parent
EMBEDDED = ROOT / "assets/ref5m"
VOCAB = 128
ARCHITECTURES = ("llama", "yarn", "mistral", "qwen2", "qwen3", "mixed", "gemma2")
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 8.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}


def config_of(name: str) -> Any:
    shape: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 1024,
    }
    if name == "yarn":
        scaled = YARN | {"original_max_position_embeddings": 256}
        return LlamaConfig(**shape, rope_parameters=scaled)
    if name == "mistral":
        return MistralConfig(**shape, sliding_window=24)
    if name == "mixed":
        return Qwen2Config(**shape, use_sliding_window=True, sliding_window=24, max_window_layers=1)
    if name.startswith("gemma"):
        return _gemma(name, shape)
    if name == "dynamic":
        return LlamaConfig(**shape | {"max_position_embeddings": 32}, rope_parameters=DYNAMIC)
    if name == "phi3":
        return _phi3(shape)
    return {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[name](**shape)


def _gemma(name: str, shape: dict[str, Any]) -> Any:
    """Layers with and without a window, other scales of scores; "gemma2-capped" has a softcap."""
    if name == "gemma3":
        return Gemma3TextConfig(**shape, sliding_window=24, query_pre_attn_scalar=16,
                                layer_types=["sliding_attention", "full_attention"])  # fmt: skip
    cap = 50.0 if name == "gemma2-capped" else None
    return Gemma2Config(**shape, sliding_window=24, query_pre_attn_scalar=16,
                        attn_logit_softcapping=cap)  # fmt: skip


def _phi3(shape: dict[str, Any]) -> Any:
    """Half of the channels are rotated, by angles that grow with the length of the text."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
    }
    usual = {name: value for name, value in shape.items() if name != "head_dim"}
    return Phi3Config(
        **usual, original_max_position_embeddings=64, rope_parameters=rope, pad_token_id=0
    )


@cache
def tiny(name: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    """Weights five times as large as usual: attention that is far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(name), dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)
    return model.requires_grad_(False)


@cache
def embedded() -> Any:
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def left_padded(lengths: list[int], seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids, attention_mask) of prompts of these lengths."""
    width = max(lengths)
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths])
    return tokens(len(lengths), width, seed=seed) * mask, mask


def make(model: Any, spec: str, **options: Any) -> CompressedDynamicCache:
    """One that adds in f32, so that ways of computing the same can be compared."""
    settings = {"precision": "f32", "num_threads": 2, **options}
    return CompressedDynamicCache.from_spec(model, spec, **settings)


def logits_of(model: Any, ids: torch.Tensor, cache: Any = None, **options: Any) -> torch.Tensor:
    logits: torch.Tensor = model(ids, past_key_values=cache, **options).logits
    return logits.detach()


def generate(model: Any, ids: torch.Tensor, cache: Any = None, **options: Any) -> torch.Tensor:
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    settings |= {"pad_token_id": 0, "eos_token_id": None}
    settings["attention_mask"] = torch.ones_like(ids)
    out: torch.Tensor = model.generate(ids, past_key_values=cache, **{**settings, **options})
    return out
