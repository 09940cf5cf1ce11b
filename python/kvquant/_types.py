"""Types that the stubs of the extension name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, TypeVar

if TYPE_CHECKING:
    import numpy
    import torch

    Array: TypeAlias = numpy.ndarray[Any, Any] | torch.Tensor
    # What goes in comes out: numpy arrays or torch CPU tensors.
    ArrayT = TypeVar("ArrayT", numpy.ndarray[Any, Any], torch.Tensor)
    # Token ids.
    Tokens: TypeAlias = Sequence[int] | Array


class Generation(TypedDict):
    """What Session.generate returns; times in seconds."""

    tokens: list[int]  # without the stop token
    text: str
    stop: str  # "stop_token", "max_tokens", "context_full", "caller"
    num_prompt_tokens: int
    prompt_s: float
    generation_s: float
