"""transformers under the harness, for models that the engine doesn't run itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from kvquant.hf import CompressedDynamicCache, load_model
from kvquant.hf.shape import ModelShape
from kvquant.lm_eval.backend import (
    Answer,
    CacheOptions,
    Message,
    OnProgress,
    Request,
    Sampling,
    Score,
)

logger = logging.getLogger("lm_eval.kvquant")


class TransformersBackend:
    """batch_size requests go through the model together, each a sequence of its own."""

    name = "hf"

    def __init__(
        self,
        pretrained: str,
        options: CacheOptions,
        batch_size: int,
        device: str | None,
        dtype: str,
    ) -> None:
        self.options, self.batch_size = options, batch_size
        self.model, self.tokenizer = load_model(pretrained, dtype=getattr(torch, dtype))
        if device and device.startswith("cuda") and not torch.cuda.is_available():
            logger.warning("device is '%s', and torch has no such one: 'cpu'", device)
            device = None
        if device:
            self.model.to(device)
        shape = ModelShape.of(self.model.config, options.keys)
        self.fused, self.max_length = not shape.softcap, shape.max_positions
        self.bos_token_id: int | None = self.tokenizer.bos_token_id
        self.eos_token_id: int | None = self.tokenizer.eos_token_id
        self.chat_template: str | None = self.tokenizer.chat_template
        self._new_cache("strict")  # refuses now what doesn't fit

    def encode(self, text: str, add_bos: bool | None) -> list[int]:
        """Token ids; special tokens that are written out count as such. None: as configured."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_bos is not False)
        if add_bos and self.bos_token_id is not None and ids[:1] != [self.bos_token_id]:
            ids.insert(0, self.bos_token_id)
        return ids

    def token_text(self, token: int) -> str:
        """Also of special tokens."""
        return str(self.tokenizer.decode([token]))

    def render(self, messages: Sequence[Message]) -> str:
        """A prompt that ends where the assistant's answer begins."""
        return str(
            self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        )

    def info(self) -> dict[str, Any]:
        """What else a result should say of the model."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
        }

    def score(self, requests: Sequence[Request], mode: str, progress: OnProgress) -> list[Score]:
        """In the order of the requests; contexts of about one length share a batch."""
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][0]))
        out: dict[int, Score] = {}
        for begin in range(0, len(order), self.batch_size):
            batch = order[begin : begin + self.batch_size]
            out.update(zip(batch, self._score([requests[i] for i in batch], mode), strict=True))
            progress(len(out), len(order))
        return [out[i] for i in range(len(requests))]

    @torch.no_grad()
    def _score(self, requests: list[Request], mode: str) -> list[Score]:
        """Contexts padded on the left, then what predicts the continuations, on the right."""
        cache = self._new_cache(mode)
        contexts = [context[:-1] for context, _ in requests]
        readings = [[context[-1], *tokens[:-1]] for context, tokens in requests]
        ids, mask = self._padded(contexts, left=True)
        lengths = torch.tensor([len(context) for context in contexts])[:, None]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        for begin in range(0, ids.shape[1], self.options.ubatch):
            end = min(begin + self.options.ubatch, ids.shape[1])
            self.model(
                ids[:, begin:end],
                attention_mask=mask[:, :end],
                position_ids=positions[:, begin:end],
                past_key_values=cache,
                logits_to_keep=1,
            )
        ids, new = self._padded(readings, left=False)
        positions = lengths.to(ids) + torch.arange(ids.shape[1]).to(ids)
        logits = self.model(
            ids,
            attention_mask=torch.cat([mask, new], dim=1),
            position_ids=positions,
            past_key_values=cache,
        ).logits
        log_probabilities = torch.log_softmax(logits.float().cpu(), dim=-1)
        compressed = cache.num_compressed_tokens()
        out = []
        for row, (_, tokens) in enumerate(requests):
            predicted = log_probabilities[row, : len(tokens)]
            targets = torch.tensor(tokens)
            total = float(predicted.gather(1, targets[:, None]).double().sum())
            is_greedy = bool(torch.equal(predicted.argmax(-1), targets))
            out.append((total, is_greedy, compressed))
        return out

    @torch.no_grad()
    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, mode: str) -> list[Answer]:
        """One for each prompt."""
        out: list[Answer] = []
        for begin in range(0, len(prompts), self.batch_size):
            out += self._generate(prompts[begin : begin + self.batch_size], sampling, mode)
        return out

    def _generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, mode: str
    ) -> list[Answer]:
        ids, mask = self._padded(prompts, left=True)
        cache = self._new_cache(mode)
        options: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            options = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p,
            }
        stops = _Stops(self.tokenizer, ids.shape[1], sampling.until)
        out = self.model.generate(
            ids,
            attention_mask=mask,
            past_key_values=cache,
            prefill_chunk_size=self.options.ubatch,
            max_new_tokens=sampling.max_tokens,
            repetition_penalty=sampling.repeat_penalty,
            pad_token_id=self.eos_token_id if self.eos_token_id is not None else 0,
            stopping_criteria=StoppingCriteriaList([stops]),
            **options,
        )
        compressed = cache.num_compressed_tokens()
        texts = self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return [Answer(text, compressed) for text in texts]

    def _padded(self, rows: Sequence[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, mask) [rows, the longest]; padding has id 0."""
        width = max(map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            place = slice(width - len(tokens), width) if left else slice(0, len(tokens))
            ids[row, place] = torch.tensor(tokens, dtype=torch.long)
            mask[row, place] = 1
        return ids.to(self.model.device), mask.to(self.model.device)

    def _new_cache(self, mode: str) -> CompressedDynamicCache:
        options = self.options
        return CompressedDynamicCache.from_spec(
            self.model,
            options.spec,
            calibration=options.calibration,
            mode=mode,
            precision=options.precision,
            num_threads=options.num_threads,
            keys=options.keys,
            fused=self.fused,
        )


class _Stops(StoppingCriteria):  # type: ignore[misc,unused-ignore]
    """Rows whose text holds a stop string are over."""

    def __init__(self, tokenizer: Any, prompt_length: int, until: tuple[str, ...]) -> None:
        self.tokenizer, self.prompt_length, self.until = tokenizer, prompt_length, until

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt_length :])
        done = [any(stop in text for stop in self.until) for text in texts]
        return torch.tensor(done, device=input_ids.device)
