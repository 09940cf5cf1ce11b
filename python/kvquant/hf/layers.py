"""The layers of a CompressedDynamicCache, as transformers wants them."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from kvquant.hf.attention import Handle, with_handle
from kvquant.hf.compressors import Compressor, Stored
from kvquant.hf.store import Store


class EngineLayer(CacheLayerMixin):
    """A layer of the engine's cache; what changes the batch is done for all layers at once."""

    is_croppable = True
    supports_early_init = False

    def __init__(self, store: Store, index: int, fused: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.store, self.index, self.fused = store, index, fused
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the store needs none."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values decoded, or, fused, the new ones with a handle on the rest."""
        if self.fused:
            self.store.expect(self.index, key_states, value_states)
            return with_handle(key_states, Handle(self.store, self.index)), value_states
        return self.store.update(self.index, key_states, value_states)

    def get_seq_length(self) -> int:
        """Places of the batch, padding included."""
        return self.store.places(self.index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(length, offset) of what the queries of the next chunk see."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


class CompressorLayer(CacheLayerMixin):
    """What two compressors keep, padding and all; every update decompresses it."""

    is_croppable = True
    supports_early_init = False

    def __init__(self, key: Compressor, value: Compressor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.compressors = key, value
        self.stored: tuple[Stored, Stored] | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the first update does it."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of the layer, [batch, num_kv_heads, seq_len, head_dim]."""
        new = tuple(
            compressor.compress(x.detach())
            for compressor, x in zip(self.compressors, (key_states, value_states), strict=True)
        )
        old = self.stored
        key, value = (_append(old[i] if old else None, new[i]) for i in range(2))
        self.stored, self.is_initialized = (key, value), True
        return (
            self.compressors[0].decompress(key).to(key_states),
            self.compressors[1].decompress(value).to(value_states),
        )

    def get_seq_length(self) -> int:
        """Places of the batch, padding included."""
        return int(self.stored[0][0].shape[2]) if self.stored else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(length, offset) of what the queries of the next chunk see."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def memory_bytes(self) -> int:
        """Of what is stored."""
        return sum(x.nbytes for side in self.stored or () for x in side)

    def reset(self) -> None:
        """Forgets everything."""
        self.stored, self.is_initialized = None, False

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens: their number, negative."""
        if tokens_to_remove < 0:
            keep = max(0, self.get_seq_length() + tokens_to_remove)
            self._map(lambda x: x[:, :, :keep])

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes row beam_idx[i]."""
        self._map(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        self._map(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows of these indices, or where a mask is true."""
        self._map(lambda x: x[indices])

    def _map(self, change: Any) -> None:
        if self.stored:
            key, value = self.stored
            self.stored = tuple(map(change, key)), tuple(map(change, value))


def _append(old: Stored | None, new: Stored) -> Stored:
    if old is None:
        return new
    return tuple(torch.cat(pair, dim=2) for pair in zip(old, new, strict=True))
