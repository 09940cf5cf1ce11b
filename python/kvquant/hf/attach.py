"""Hooks that tell caches what a forward pass is going to append.

transformers' Cache.update is handed keys and values, but neither the mask of the batch nor the
positions, which compressed caches need: they store tokens, not padding, and keys before RoPE. So a
model is attached once. Its passes over other caches are as they were before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch

from kvquant.hf.attention import NAME


class Announced(Protocol):
    """What a cache has that wants to be told."""

    def begin(
        self,
        config: Any,
        inputs: torch.Tensor,
        attention_mask: Any,
        position_ids: torch.Tensor | None,
    ) -> bool: ...


CacheMaker = Callable[[Any], Any]  # the cache to use in place of the one that is given, or None


class Attachment:
    """The two hooks of a model's decoder."""

    def __init__(self, base: torch.nn.Module) -> None:
        self.names = list(inspect.signature(base.forward).parameters)
        self.maker: CacheMaker | None = None
        self._implementation: str | None = None
        self._handles = [
            base.register_forward_pre_hook(self._before, with_kwargs=True),
            base.register_forward_hook(self._after, always_call=True),
        ]

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _before(
        self, base: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        if self.maker is not None:
            given["past_key_values"] = self.maker(given.get("past_key_values"))
        cache = given.get("past_key_values")
        if cache is None or not hasattr(cache, "begin"):
            return None
        inputs = given.get("input_ids")
        inputs = given.get("inputs_embeds") if inputs is None else inputs
        if inputs is None:
            return None  # the model says it better
        config: Any = base.config
        if cache.begin(config, inputs, given.get("attention_mask"), given.get("position_ids")):
            self._implementation = config._attn_implementation
            config._attn_implementation = NAME
        return (), given

    def _after(self, base: torch.nn.Module, args: Any, output: Any) -> None:
        if self._implementation is not None:
            config: Any = base.config
            config._attn_implementation, self._implementation = self._implementation, None


_attached: WeakKeyDictionary[torch.nn.Module, Attachment] = WeakKeyDictionary()


def attach(model: Any) -> Attachment:
    """Lets compressed caches work with a model; once is enough, more do nothing."""
    base = decoder_of(model)
    if base not in _attached:
        _attached[base] = Attachment(base)
    return _attached[base]


def is_attached(model: Any) -> bool:
    """Whether attach was called, and detach not after it."""
    return decoder_of(model) in _attached


def is_patched(model: Any) -> bool:
    """Whether a QuantizedModelWrapper gives its passes compressed caches."""
    attachment = _attached.get(decoder_of(model))
    return attachment is not None and attachment.maker is not None


def detach(model: Any) -> None:
    """Takes the hooks away again: the model is as it was before attach."""
    attachment = _attached.pop(decoder_of(model), None)
    if attachment is not None:
        attachment.remove()


def decoder_of(model: Any) -> torch.nn.Module:
    """The module that has the layers; ValueError when there is none with a cache."""
    base = getattr(model, "base_model", None)
    if not isinstance(base, torch.nn.Module):
        raise ValueError(f"a {type(model).__name__} is no transformers model")
    if "past_key_values" not in inspect.signature(base.forward).parameters:
        raise ValueError(
            f"Model doesn't have past_key_values: the forward of {type(base).__name__} takes no "
            "cache (the model must support use_cache)"
        )
    return base
