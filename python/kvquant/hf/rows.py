"""Which places of a padded batch hold tokens: a row is padding, tokens, padding.

Caches hold the tokens alone; transformers counts places, padding included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Row:
    """One sequence of the batch."""

    before: int = 0  # padding
    length: int = 0  # tokens
    after: int = 0  # padding
    offset: int = 0  # position of the first token, as the model counts

    @property
    def places(self) -> int:
        return self.before + self.length + self.after


@dataclass(frozen=True)
class Chunk:
    """New places of all rows, and the rows as they are behind them."""

    rows: tuple[Row, ...]
    spans: tuple[tuple[int, int], ...]  # the new places [begin, end) that are tokens
    positions: torch.Tensor  # int64 [batch, num_new]


def extend(
    rows: tuple[Row, ...],
    num_new: int,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> Chunk:
    """The chunk of num_new places behind rows, which all have the same number of them.

    attention_mask [batch, places + num_new], 1 for tokens, or None: all are; position_ids
    [batch or 1, num_new], or None: a token's position is its place.
    """
    batch, seen = len(rows), rows[0].places
    mask = _checked_mask(rows, num_new, attention_mask)
    if position_ids is None:
        position_ids = torch.arange(seen, seen + num_new)[None]
    if position_ids.shape not in ((batch, num_new), (1, num_new)):
        raise ValueError(
            f"position_ids has the shape {list(position_ids.shape)}, not [{batch}, {num_new}]"
        )
    positions = position_ids.detach().cpu().long().expand(batch, num_new)
    extended, spans = [], []
    for index, row in enumerate(rows):
        new, span = _extend_row(row, mask[index].tolist(), index)
        if span[0] < span[1]:
            new = _with_offset(row, new, positions[index, slice(*span)], index)
        extended.append(new)
        spans.append(span)
    return Chunk(tuple(extended), tuple(spans), positions)


def _checked_mask(
    rows: tuple[Row, ...], num_new: int, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """Of the new places; the old ones must be as they were."""
    batch, seen = len(rows), rows[0].places
    if attention_mask is None:
        if any(row.length != row.places for row in rows):
            raise ValueError("attention_mask is None, but the cache holds a padded batch")
        return torch.ones(batch, num_new, dtype=torch.bool)
    if tuple(attention_mask.shape) != (batch, seen + num_new):
        raise ValueError(
            f"attention_mask has the shape {list(attention_mask.shape)}, not [batch, tokens so far "
            f"and new] = [{batch}, {seen + num_new}]"
        )
    mask = attention_mask.detach().cpu() != 0
    for index, row in enumerate(rows):
        part = mask[index, :seen]
        inside = part[row.before : row.before + row.length]
        if not bool(inside.all()) or int(part.sum()) != row.length:
            raise ValueError(f"attention_mask of row {index} isn't what it was for earlier tokens")
    return mask[:, seen:]


def _extend_row(row: Row, mask: list[bool], index: int) -> tuple[Row, tuple[int, int]]:
    count, num_new = sum(mask), len(mask)
    if count == 0:
        if row.length == 0:
            return replace(row, before=row.before + num_new), (0, 0)
        return replace(row, after=row.after + num_new), (0, 0)
    begin = mask.index(True)
    end = begin + count
    gap = row.after + begin if row.length else 0
    if gap or not all(mask[begin:end]):
        raise ValueError(f"attention_mask of row {index} has a hole: its tokens aren't consecutive")
    before = row.before + (begin if row.length == 0 else 0)
    return Row(before, row.length + count, num_new - end, row.offset), (begin, end)


def _with_offset(row: Row, new: Row, positions: torch.Tensor, index: int) -> Row:
    first = int(positions[0])
    offset = row.offset if row.length else first
    expected = torch.arange(len(positions)) + offset + row.length
    if not torch.equal(positions, expected):
        raise ValueError(
            f"position_ids of row {index} begin with {first} and have to go on one by one from "
            f"{offset + row.length}"
        )
    return replace(new, offset=offset)


def shorten(row: Row, count: int) -> Row:
    """The row without its last `count` places."""
    after = max(0, row.after - count)
    left = row.places - count
    length = max(0, min(row.length, left - row.before))
    return Row(min(row.before, left), length, after, row.offset)
