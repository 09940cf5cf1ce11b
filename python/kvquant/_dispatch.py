"""Names that serve native and transformers models alike; torch is imported for the latter only."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, overload

from kvquant import _core
from kvquant._core import KVPolicyName, Model, PolicyModel, Preset

if TYPE_CHECKING:
    import kvquant.hf


class ActivationCollector:
    """Keys (before RoPE) and values of a model's layers, gathered while the model runs.

    ActivationCollector(model, max_samples=16) of a Model is the engine's, which watches sessions;
    of a transformers model kvquant.hf's, which watches forward passes.
    """

    @overload
    def __new__(cls, model: Model, max_samples: int = 16) -> _core.ActivationCollector: ...  # type: ignore[misc]
    @overload
    def __new__(cls, model: Any, max_samples: int = 16) -> kvquant.hf.ActivationCollector: ...  # type: ignore[misc]
    def __new__(cls, model: Any, max_samples: int = 16) -> Any:
        """The collector of a model."""
        if isinstance(model, Model):
            return _core.ActivationCollector(model, max_samples)
        from kvquant.hf.collector import ActivationCollector as ForTransformers

        return ForTransformers(model, max_samples)


def get_preset_info(model: str | os.PathLike[str] | Any, name: str | os.PathLike[str]) -> Preset:
    """A preset of a model: a file, a name such as 'balanced', or 'r120-vonly' and the like.

    model: 'smollm2', 'embedded' or a path; a Model; or a transformers model that was loaded from a
    directory or a GGUF file. 'r120-vonly' keeps 120 components of values and needs no file.
    """
    if isinstance(model, Model):
        model = model.path
    elif not isinstance(model, (str, os.PathLike)):
        from kvquant.hf.fingerprint import checkpoint_of

        place = checkpoint_of(model)
        if place is None:
            raise ValueError(
                f"the {type(model).__name__} wasn't loaded from a directory or a GGUF file, by "
                "which presets are found: load_preset(file) needs no model"
            )
        model = place
    return _core.get_preset_info(str(model), str(name))


def build_compressor_config_for_policy(
    config: Any, model_id: str, policy_name: KVPolicyName | str
) -> dict[str, Any]:
    """What a policy stores for a model: policy, model_id, spec, ppl_budget, key_codec,
    value_codec, sink_tokens, recent_tokens, use_hadamard_v, use_ln_nullspace_v.

    config: a Model, a PolicyModel, or the config of a transformers model.
    """
    if isinstance(config, (Model, PolicyModel)):
        return _core.build_compressor_config_for_policy(config, model_id, policy_name)
    from kvquant.hf.presets import build_compressor_config_for_policy as for_transformers

    return for_transformers(config, model_id, policy_name)
