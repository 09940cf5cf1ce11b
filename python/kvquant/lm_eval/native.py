"""The engine's own runtime under the harness; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvquant._core import Model, Session, score_continuations
from kvquant.lm_eval.backend import (
    Answer,
    CacheOptions,
    Message,
    OnProgress,
    Request,
    Sampling,
    Score,
)


class NativeBackend:
    """Continuations of one context are read side by side, answers are made one after the other.

    Neither depends on a batch size.
    """

    name = "native"

    def __init__(self, pretrained: str, options: CacheOptions, weights: str, template: str) -> None:
        self.options = options
        self.template = template
        self.model = Model.load(
            pretrained,
            num_threads=options.num_threads,
            precision=options.precision,
            weights=weights,
            calibration=options.calibration,
        )
        tokenizer = self.model.tokenizer
        self.max_length = int(self.model.config["max_context"])
        self.bos_token_id = tokenizer.bos_token_id if tokenizer.bos_token_id >= 0 else None
        self.eos_token_id = tokenizer.eos_token_id if tokenizer.eos_token_id >= 0 else None
        self.chat_template = template or self.model.chat_template or None

    def encode(self, text: str, add_bos: bool | None) -> list[int]:
        """Token ids; special tokens that are written out count as such. None: as configured."""
        ids = self.model.tokenizer.encode(text, add_special_tokens=add_bos is not False)
        if add_bos and self.bos_token_id is not None and ids[:1] != [self.bos_token_id]:
            ids.insert(0, self.bos_token_id)
        return ids

    def token_text(self, token: int) -> str:
        """Also of special tokens."""
        return self.model.tokenizer.decode([token], skip_special_tokens=False)

    def render(self, messages: Sequence[Message]) -> str:
        """A prompt that ends where the assistant's answer begins."""
        return self.model.apply_chat_template(messages, self.template)

    def score(self, requests: Sequence[Request], mode: str, progress: OnProgress) -> list[Score]:
        """In the order of the requests."""
        options = self.options
        return score_continuations(
            self.model,
            requests,
            kv=options.spec,
            mode=mode,
            ubatch=options.ubatch,
            on_progress=progress,
        )

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, mode: str) -> list[Answer]:
        """One for each prompt."""
        return [self._answer(prompt, sampling, mode) for prompt in prompts]

    def _answer(self, prompt: list[int], sampling: Sampling, mode: str) -> Answer:
        tokenizer, tokens = self.model.tokenizer, list[int]()

        def goes_on(token: int) -> bool:
            tokens.append(token)
            text = tokenizer.decode(tokens)
            return not any(stop in text for stop in sampling.until)

        session = Session(self.model, self.options.spec, mode, ubatch=self.options.ubatch)
        out = session.generate(
            prompt,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repeat_penalty=sampling.repeat_penalty,
            on_token=goes_on,
        )
        return Answer(tokenizer.decode(out["tokens"]), session.num_compressed_tokens)

    def info(self) -> dict[str, Any]:
        """What else a result should say of the model."""
        return {
            "model_num_parameters": self.model.num_parameters,
            "model_fingerprint": self.model.fingerprint,
        }
