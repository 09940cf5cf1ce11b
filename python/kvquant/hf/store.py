"""The engine's cache under a batch: each row a sequence that holds its own tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kvquant._core import KvCache
from kvquant.hf.masks import plain_mask
from kvquant.hf.rope import Angles, Rope, rotate, unrotate
from kvquant.hf.rows import Chunk, Row, extend, shorten
from kvquant.hf.shape import ModelShape


class Store:
    """Rows of one batch in a KvCache, which forks of the store share."""

    def __init__(self, shape: ModelShape, rope: Rope, engine: KvCache) -> None:
        self.shape = shape
        self.rope = rope
        self.engine = engine
        self.rows: tuple[Row, ...] = ()
        self.ids: list[int] = []
        self.chunk: Chunk | None = None  # between begin and the last layer
        self.num_done = 0  # layers that have the chunk
        self._angles: dict[torch.dtype, Angles] = {}

    def places(self, layer: int) -> int:
        """Places of the padded batch that a layer has."""
        rows = self.chunk.rows if self.chunk and layer < self.num_done else self.rows
        return rows[0].places if rows else 0

    def begin(
        self,
        batch: int,
        num_new: int,
        attention_mask: Any,
        position_ids: torch.Tensor | None,
    ) -> None:
        """Announces what a forward pass is going to append to all layers.

        attention_mask: as the model takes it (masks.py, rows.py say which ones are known).
        """
        self._check_whole()
        if self.rows and len(self.rows) != batch:
            raise ValueError(
                f"the cache holds a batch of {len(self.rows)}, the inputs one of {batch}"
            )
        rows = self.rows or (Row(),) * batch
        spans = [(row.before, row.before + row.length) for row in rows]
        mask = plain_mask(attention_mask, spans, rows[0].places, self.shape.windows)
        self.chunk = extend(rows, num_new, mask, position_ids)
        self._angles = {}
        if not self.ids:
            self.ids = [self.engine.add_sequence() for _ in range(batch)]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        """Appends the chunk and attends; all rotated, [batch, heads, num_new, head_dim].

        Returns [batch, num_new, heads, head_dim] in query's dtype, zeros in padding.
        """
        chunk = self.expect(layer, key, value)
        usual = self.shape.head_dim**-0.5 if scale is None else scale
        scale = usual * self.rope.attention_scaling**2
        angles = self._angles_of(key.dtype)
        queries, keys, values = (
            self._plain(query, angles),
            self._plain(key, angles),
            _rows_of(value),
        )
        out = torch.zeros_like(queries)
        for row, (begin, end) in enumerate(chunk.spans):
            if begin < end:
                q, k, v = (t[row, begin:end] for t in (queries, keys, values))
                out[row, begin:end] = self.engine.attend(layer, self.ids[row], q, k, v, scale=scale)
        self._finish(layer, chunk)
        return out.to(query)

    def update(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends the chunk; all tokens decoded, [batch, num_kv_heads, places, head_dim]."""
        chunk = self.expect(layer, key, value)
        keys, values = self._plain(key, self._angles_of(key.dtype)), _rows_of(value)
        shape = (*key.shape[:2], chunk.rows[0].places, self.shape.head_dim)
        decoded = torch.zeros(shape), torch.zeros(shape)
        for row, (begin, end) in enumerate(chunk.spans):
            if begin < end:
                part = keys[row, begin:end], values[row, begin:end]
                self.engine.append(layer, self.ids[row], *part)
            self._read(layer, row, chunk.rows[row], decoded)
        self._finish(layer, chunk)
        return decoded[0].to(key), decoded[1].to(value)

    def _read(self, layer: int, index: int, row: Row, out: tuple[torch.Tensor, ...]) -> None:
        if row.length == 0:
            return
        keys, values = (t.transpose(0, 1) for t in self.engine.read(layer, self.ids[index]))
        if row.offset:
            moved = self.rope.angles(torch.tensor([[row.offset]]), torch.float32)
            keys = rotate(keys[None], moved)[0]
        else:
            keys = keys * self.rope.attention_scaling
        span = slice(row.before, row.before + row.length)
        out[0][index, :, span], out[1][index, :, span] = keys, values

    def expect(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> Chunk:
        """The chunk that was announced, if that is what comes now; else an exception."""
        if self.chunk is None:
            raise RuntimeError(
                "the cache knows nothing of this forward pass: make it with from_spec(model), or "
                "call attach(model), of the model that uses it"
            )
        if layer != self.num_done:
            raise RuntimeError(f"layer {layer} comes where layer {self.num_done} is due")
        places = self.chunk.positions.shape[1]
        expected = (len(self.ids), self.shape.num_kv_heads, places, self.shape.head_dim)
        for name, x in (("key", key), ("value", value)):
            if tuple(x.shape) != expected:
                raise ValueError(
                    f"{name} has the shape {list(x.shape)}, not [batch, num_kv_heads, seq_len, "
                    f"head_dim] = {list(expected)}"
                )
            if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
                raise ValueError(f"{name} is {x.dtype}, not float32, float16 or bfloat16")
        return self.chunk

    def _angles_of(self, dtype: torch.dtype) -> Angles:
        if dtype not in self._angles and self.chunk is not None:
            self._angles[dtype] = self.rope.angles(self.chunk.positions, dtype)
        return self._angles[dtype]

    def _plain(self, x: torch.Tensor, angles: Angles) -> torch.Tensor:
        """Before RoPE, [batch, seq_len, heads, head_dim]."""
        return unrotate(x.detach().cpu(), angles).transpose(1, 2).contiguous()

    def _finish(self, layer: int, chunk: Chunk) -> None:
        self.num_done = layer + 1
        if self.num_done == self.shape.num_layers:
            self.rows, self.chunk, self.num_done = chunk.rows, None, 0

    def _check_whole(self) -> None:
        if self.num_done:
            raise RuntimeError(
                f"a forward pass was broken off behind layer {self.num_done - 1}: reset() the cache"
            )
        self.chunk = None

    def reset(self) -> None:
        """Forgets everything."""
        for sequence in self.ids:
            self.engine.drop(sequence)
        self.rows, self.ids, self.chunk, self.num_done = (), [], None, 0

    def select(self, indices: Sequence[int]) -> None:
        """Row i becomes what row indices[i] was; rows may come several times."""
        self._check_whole()
        if any(not 0 <= index < len(self.ids) for index in indices):
            raise ValueError(f"rows {list(indices)} of a batch of {len(self.ids)}")
        taken: set[int] = set()
        chosen = []
        for index in indices:
            old = self.ids[index]
            chosen.append(self.engine.fork(old) if index in taken else old)
            taken.add(index)
        for index, old in enumerate(self.ids):
            if index not in taken:
                self.engine.drop(old)
        self.rows, self.ids = tuple(self.rows[index] for index in indices), chosen

    def crop(self, count: int) -> None:
        """Forgets the last `count` places of every row; ValueError where that can't be."""
        self._check_whole()
        rows = tuple(shorten(row, min(count, row.places)) for row in self.rows)
        pairs = [(i, r.length) for i, r, old in zip(self.ids, rows, self.rows, strict=True)
                 if r.length != old.length]  # fmt: skip
        for sequence, length in pairs:
            self.engine.settle(sequence)
            if length and not self.engine.can_truncate(sequence, length):
                raise ValueError(
                    f"crop: a row of {self.engine.length(sequence)} tokens can't go back to "
                    f"{length}: they are compressed; only exact ones can be forgotten (as served "
                    "the last `recent` of the spec), or all of them"
                )
        for sequence, length in pairs:
            if length:
                self.engine.truncate(sequence, length)
            else:
                self._empty(sequence)
        self.rows = rows

    def _empty(self, sequence: int) -> None:
        self.engine.drop(sequence)
        self.ids[self.ids.index(sequence)] = self.engine.add_sequence()

    def fork(self) -> Store:
        """The same tokens; the two share memory until one of them writes."""
        self._check_whole()
        copy = Store(self.shape, self.rope, self.engine)
        copy.rows, copy.ids = self.rows, [self.engine.fork(sequence) for sequence in self.ids]
        return copy

    def settle(self) -> None:
        """Encodes what has left the tail, as the next forward pass would."""
        self._check_whole()
        for sequence in self.ids:
            self.engine.settle(sequence)

    def __del__(self) -> None:
        engine: Any = getattr(self, "engine", None)
        for sequence in getattr(self, "ids", ()) if engine is not None else ():
            engine.drop(sequence)


def _rows_of(x: torch.Tensor) -> torch.Tensor:
    """[batch, seq_len, heads, head_dim], float32."""
    return x.detach().cpu().float().transpose(1, 2).contiguous()
