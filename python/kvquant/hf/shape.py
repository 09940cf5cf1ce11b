"""What of a transformers configuration decides how its cache is stored.

Architectures and options that are not known to work are refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # whose angles depend on the position alone
BEFORE_ROPE, AFTER_ROPE = "before-rope", "after-rope"


@dataclass(frozen=True)
class ModelShape:
    """Two models of the same shape can share caches; so far as a configuration tells."""

    model_type: str
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[int, ...]  # of each layer: tokens that a query sees, 0: all
    max_positions: int
    rope: tuple[tuple[str, Any], ...]
    keys: str  # stored "before-rope" or "after-rope"
    score_scale: float
    softcap: float  # of scores, 0: none

    @classmethod
    def of(cls, config: Any, keys: str = BEFORE_ROPE) -> ModelShape:
        """Of a model's config; ValueError for what caches don't support."""
        if keys not in (BEFORE_ROPE, AFTER_ROPE):
            raise ValueError(f"keys is {keys!r}, not '{BEFORE_ROPE}' or '{AFTER_ROPE}'")
        model_type = str(getattr(config, "model_type", type(config).__name__))
        if model_type not in ARCHITECTURES:
            raise ValueError(
                f"model_type is '{model_type}'; compressed caches know {', '.join(ARCHITECTURES)}"
            )
        heads = int(config.num_attention_heads)
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        return cls(
            model_type=model_type,
            num_layers=int(config.num_hidden_layers),
            num_q_heads=heads,
            num_kv_heads=int(config.num_key_value_heads),
            head_dim=head_dim,
            windows=_windows(config),
            max_positions=_max_positions(config, keys),
            rope=_rope(config) if keys == BEFORE_ROPE else (),
            keys=keys,
            score_scale=float(getattr(config, "query_pre_attn_scalar", None) or head_dim) ** -0.5,
            softcap=float(getattr(config, "attn_logit_softcapping", None) or 0),
        )

    @property
    def sliding_window(self) -> int:
        """Of all layers, 0 where one of them has none: for what has to hold of all."""
        return max(self.windows) if all(self.windows) else 0


def _max_positions(config: Any, keys: str) -> int:
    """Dynamic RoPE, which caches know after RoPE only, is made for longer texts than it says."""
    parameters = config.rope_parameters
    is_dynamic = keys == AFTER_ROPE and parameters.get("rope_type") == "dynamic"
    return int(config.max_position_embeddings * (parameters["factor"] if is_dynamic else 1))


def _windows(config: Any) -> tuple[int, ...]:
    window = getattr(config, "sliding_window", None)
    count = int(config.num_hidden_layers)
    usual = "sliding_attention" if window else "full_attention"
    kinds = list(getattr(config, "layer_types", None) or [usual] * count)
    known = {"full_attention", "sliding_attention"}
    if len(kinds) != count or not known.issuperset(kinds):
        raise ValueError(
            f"layer_types are {', '.join(sorted(set(kinds)))} for {count} layers; compressed "
            "caches know one for each layer, full_attention or sliding_attention"
        )
    if "sliding_attention" in kinds and not window:
        raise ValueError("layer_types have sliding_attention, but there is no sliding_window")
    if getattr(config, "use_bidirectional_attention", False):
        raise ValueError("use_bidirectional_attention is set; compressed caches are causal")
    return tuple(int(window or 0) if kind == "sliding_attention" else 0 for kind in kinds)


def _rope(config: Any) -> tuple[tuple[str, Any], ...]:
    parameters = dict(config.rope_parameters)
    instead = f"; caches take keys='{AFTER_ROPE}', as they come, at some cost of quality"
    if "rope_type" not in parameters:
        raise ValueError(
            f"rope_parameters differ between layers ({', '.join(sorted(parameters))}); compressed "
            f"caches undo one RoPE for all{instead}"
        )
    rope_type = parameters["rope_type"]
    if rope_type not in ROPE_TYPES:
        raise ValueError(
            f"rope_type is {rope_type!r}; compressed caches undo {', '.join(ROPE_TYPES)}{instead}"
        )
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"partial_rotary_factor is {parameters['partial_rotary_factor']}; compressed caches "
            f"undo RoPE of all channels{instead}"
        )
    return tuple(sorted((name, value) for name, value in parameters.items() if value is not None))
