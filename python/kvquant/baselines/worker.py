"""`python -m kvquant.baselines.worker KIND REQUEST`: times one cache, prints JSON."""

from __future__ import annotations

import copy
import json
import sys
import time
from dataclasses import asdict
from typing import Any, Protocol

from kvquant.baselines.request import Request, Shape, parse_request

NBITS = 4  # of QuantizedCache, with its own defaults otherwise


class Cache(Protocol):
    """What a shape is timed on."""

    name: str
    weights: str

    def fill(self, shape: Shape) -> None:
        """The depth, before the clock starts."""

    def rewind(self) -> None:
        """To what fill() left."""

    def run(self) -> None:
        """The prompt and the decode steps."""

    def num_bytes(self) -> int | None:
        """What it holds; None: it doesn't say."""


class TransformersCache:
    """DynamicCache or QuantizedCache behind the attention that transformers chooses."""

    def __init__(self, kind: str, request: Request) -> None:
        import torch

        import kvquant

        self._torch = torch
        torch.set_num_threads(request.threads)
        self._dtype = torch.float32 if request.precision == "f32" else torch.bfloat16
        self._model, _ = kvquant.load_model(request.model, dtype=self._dtype)
        self._generator = torch.Generator().manual_seed(request.seed)
        self._kind = kind
        type_name = str(self._dtype).removeprefix("torch.")
        self.weights = type_name
        self.name = type_name if kind == "dynamic" else f"{NBITS} bits"

    def _empty(self) -> Any:
        from transformers.cache_utils import DynamicCache, QuantizedCache

        config = self._model.config
        if self._kind == "dynamic":
            return DynamicCache(config=config)
        return QuantizedCache(self._kind, config, nbits=NBITS)

    def _tokens(self, num_tokens: int) -> Any:
        size = (self._shape.batch, num_tokens)
        return self._torch.randint(self._model.config.vocab_size, size, generator=self._generator)

    def _read(self, ids: Any) -> None:
        with self._torch.no_grad():
            self._model(ids, past_key_values=self._cache, logits_to_keep=1)

    def fill(self, shape: Shape) -> None:
        self._shape = shape
        self._cache = self._empty()
        for first in range(0, shape.n_depth, 512):
            self._read(self._tokens(min(512, shape.n_depth - first)))
        self._filled = self._cache

    def rewind(self) -> None:
        self._cache = copy.deepcopy(self._filled)
        self._prompt = self._tokens(self._shape.n_prompt)
        self._steps = self._tokens(self._shape.n_gen)

    def run(self) -> None:
        if self._shape.n_prompt:
            self._read(self._prompt)
        for i in range(self._shape.n_gen):
            self._read(self._steps[:, i : i + 1])

    def num_bytes(self) -> int | None:
        if self._kind != "dynamic":
            return None
        tensors = [x for layer in self._cache.layers for x in (layer.keys, layer.values)]
        return int(sum(x.numel() * x.element_size() for x in tensors))


class LlamaCppCache:
    """llama.cpp through its Python package, with its default cache."""

    def __init__(self, request: Request) -> None:
        import llama_cpp

        self._model = llama_cpp.Llama(
            model_path=request.gguf,
            n_ctx=max(shape.length for shape in request.shapes),
            n_batch=request.ubatch,
            n_ubatch=request.ubatch,
            n_threads=request.threads,
            n_threads_batch=request.threads,
            n_gpu_layers=0,
            seed=request.seed,
            verbose=False,
        )
        self.name, self.weights = "f16", "as in the file"

    def _tokens(self, num_tokens: int) -> list[int]:
        return [(7919 * i + 13) % self._model.n_vocab() for i in range(num_tokens)]

    def fill(self, shape: Shape) -> None:
        self._shape = shape
        self._model.reset()
        if shape.n_depth:
            self._model.eval(self._tokens(shape.n_depth))

    def rewind(self) -> None:
        self._model.n_tokens = self._shape.n_depth  # eval() drops what lies behind
        self._prompt = self._tokens(self._shape.n_prompt)
        self._steps = self._tokens(self._shape.n_gen)

    def run(self) -> None:
        if self._prompt:
            self._model.eval(self._prompt)
        for token in self._steps:
            self._model.eval([token])

    def num_bytes(self) -> int | None:
        return None


def time_shape(cache: Cache, shape: Shape, repetitions: int) -> list[float]:
    """Seconds of every repetition, after one that doesn't count."""
    cache.fill(shape)
    samples = []
    for _ in range(repetitions + 1):
        cache.rewind()
        start = time.perf_counter()
        cache.run()
        samples.append(time.perf_counter() - start)
    return samples[1:]


def main(arguments: list[str]) -> int:
    kind, request = arguments[0], parse_request(arguments[1])
    cache: Cache = (
        LlamaCppCache(request) if kind == "llama_cpp" else TransformersCache(kind, request)
    )
    results = []
    for shape in request.shapes:
        if kind == "llama_cpp" and shape.batch > 1:
            continue
        samples = time_shape(cache, shape, request.repetitions)
        results.append(
            {
                "shape": asdict(shape),
                "cache": cache.name,
                "weights": cache.weights,
                "samples_s": samples,
                "cache_bytes": cache.num_bytes(),
            }
        )
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
