"""What of a transformers configuration decides how its cache is stored.

Architectures and options that are not known to work are refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # whose angles depend on the position alone


@dataclass(frozen=True)
class ModelShape:
    """Two models of the same shape can share caches; so far as a configuration tells."""

    model_type: str
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    sliding_window: int  # 0: none
    max_positions: int
    rope: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """Of a model's config; ValueError for what caches don't support."""
        model_type = str(getattr(config, "model_type", type(config).__name__))
        if model_type not in ARCHITECTURES:
            raise ValueError(
                f"model_type is '{model_type}'; compressed caches know {', '.join(ARCHITECTURES)}"
            )
        heads = int(config.num_attention_heads)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            model_type=model_type,
            num_layers=int(config.num_hidden_layers),
            num_q_heads=heads,
            num_kv_heads=int(config.num_key_value_heads),
            head_dim=int(head_dim),
            sliding_window=_sliding_window(config),
            max_positions=int(config.max_position_embeddings),
            rope=_rope(config),
        )


def _sliding_window(config: Any) -> int:
    """The same for all layers; 0: none."""
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        kinds = {"sliding_attention" if window else "full_attention"}
    if kinds == {"full_attention"}:
        return 0
    if kinds != {"sliding_attention"} or not window:
        raise ValueError(
            f"layer_types are {', '.join(sorted(kinds))}; compressed caches want all layers alike, "
            "full_attention or sliding_attention"
        )
    return int(window)


def _rope(config: Any) -> tuple[tuple[str, Any], ...]:
    parameters = dict(config.rope_parameters)
    rope_type = parameters.get("rope_type")
    if rope_type not in ROPE_TYPES:
        raise ValueError(
            f"rope_type is {rope_type!r}; compressed caches undo {', '.join(ROPE_TYPES)}"
        )
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"partial_rotary_factor is {parameters['partial_rotary_factor']}; compressed caches "
            "want all channels rotated"
        )
    return tuple(sorted((name, value) for name, value in parameters.items() if value is not None))
