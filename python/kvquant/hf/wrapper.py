"""QuantizedModelWrapper: a transformers model whose attention reads compressed keys and values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kvquant._core import CacheSpec
from kvquant.hf.attach import attach, detach, is_attached
from kvquant.hf.cache import CompressedDynamicCache
from kvquant.hf.calibrated import check_calibration_exists
from kvquant.hf.fingerprint import check_fits
from kvquant.hf.shape import BEFORE_ROPE, ModelShape

if TYPE_CHECKING:
    from kvquant._types import Array


class QuantizedModelWrapper:
    """Between patch() and unpatch() every pass of the model uses a strict compressed cache.

    codebook: "nuq3" and the like, or any cache spec. Ranges of keys are fitted to each sequence, or
    come from calibration, a file of `kvquant calibrate`, or are scaling_factors around 0: of keys
    before RoPE (ActivationCollector.get_keys), float32 [num_kv_heads, head_dim] for each layer or
    one for all, as estimate_scaling_factors and load_per_layer_scaling_factors give them. keys:
    "after-rope" for models whose RoPE can't be undone, as of CompressedDynamicCache. A pass
    without a cache, or with a new one as generate() makes it, gets a compressed one;
    CompressedDynamicCache objects of the caller are used as they are.

    Also a context manager: `with QuantizedModelWrapper(model, "nuq3-1%"): ...`.
    """

    def __init__(
        self,
        model: Any,
        codebook: str | CacheSpec = "nuq3",
        scaling_factors: Array | Sequence[Array] | None = None,
        *,
        calibration: str | os.PathLike[str] | None = None,
        keys: str = BEFORE_ROPE,
        precision: str = "auto",
        num_threads: int = 0,
    ) -> None:
        self.model = model
        self.spec = codebook
        self._options: dict[str, Any] = {
            "calibration": calibration,
            "mode": "strict",
            "keys": keys,
            "precision": precision,
            "num_threads": num_threads,
            "scaling_factors": scaling_factors,
        }
        self._was_attached = False
        self.is_patched = False

    def patch(self) -> None:
        """From now on attention reads compressed keys and values; patching twice does nothing more.

        ValueError for models, specs, factors and calibrations that don't fit, and nothing is
        patched then.
        """
        if self.is_patched:
            return
        if self._options["calibration"] is not None:
            check_calibration_exists(self._options["calibration"])
            check_fits(self._options["calibration"], self.model)
        self._new_cache()  # refuses what doesn't work before anything changes
        self._was_attached = is_attached(self.model)
        attachment = attach(self.model)
        if attachment.maker is not None:
            raise RuntimeError("the model is patched by another QuantizedModelWrapper")
        attachment.maker = self._cache_for
        self.is_patched = True

    def unpatch(self) -> None:
        """The model is exactly what it was before patch()."""
        if not self.is_patched:
            return
        attach(self.model).maker = None
        if not self._was_attached:
            detach(self.model)
        self.is_patched = False

    def _new_cache(self) -> CompressedDynamicCache:
        """Attention that knows softcaps reads keys and values decoded."""
        softcap = ModelShape.of(self.model.config, self._options["keys"]).softcap
        return CompressedDynamicCache.from_spec(
            self.model.config, self.spec, fused=not softcap, **self._options
        )

    def _cache_for(self, given: Any) -> Any:
        if isinstance(given, CompressedDynamicCache):
            return given
        if given is not None and given.get_seq_length() > 0:
            raise ValueError(
                f"past_key_values is a {type(given).__name__} of {given.get_seq_length()} tokens "
                "from before patch(): its tokens aren't compressed"
            )
        return self._new_cache()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward."""
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's generate."""
        return self.model.generate(*args, **kwargs)

    def __enter__(self) -> QuantizedModelWrapper:
        self.patch()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.unpatch()
