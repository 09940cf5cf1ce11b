"""KvquantLM: the harness's questions to a model whose keys and values are compressed."""

from __future__ import annotations

import logging
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from tqdm import tqdm

from kvquant._core import FormatError, with_windows
from kvquant.lm_eval.arguments import of_preset, sampling_of, spec_of
from kvquant.lm_eval.backend import Backend, CacheOptions, Message, Request
from kvquant.lm_eval.native import NativeBackend

logger = logging.getLogger("lm_eval.kvquant")
# What papers report, and what users get.
MODES = {"likelihood": "strict", "generation": "as-served"}


@register_model("kvquant")
class KvquantLM(TemplateLM):  # type: ignore[misc]
    """Likelihoods are read strictly, answers are made as served, unless mode= says otherwise.

    The arguments are those of --model_args; docs/lm_eval.md has a table of them.
    """

    def __init__(
        self,
        pretrained: str = "",
        kv: str | None = None,
        *,
        calib: str | None = None,
        preset: str | None = None,
        backend: str = "auto",
        mode: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        threads: int = 0,
        precision: str = "auto",
        weights: str = "auto",
        dtype: str = "float32",
        ubatch: int = 512,
        keys: str = "before-rope",
        chat_template: str = "",
        add_bos_token: bool | None = None,
        **items: Any,
    ) -> None:
        super().__init__()
        if mode not in (None, "strict", "as-served"):
            raise ValueError(f"mode is '{mode}', not 'strict' or 'as-served'")
        if preset:
            others = ([] if kv is None else ["kv"]) + list(items)
            spec, calib = of_preset(pretrained, preset, calib, others)
        else:
            spec = spec_of(kv, items)
        options = CacheOptions(spec, calib, precision, threads, ubatch, keys)
        self.modes = {name: mode or usual for name, usual in MODES.items()}
        self.batch_size = _batch_size(batch_size)
        self.engine = _engine(
            backend, pretrained, options, self.batch_size, device, weights, dtype, chat_template
        )
        self.spec, self.pretrained, self.calib = spec, pretrained, calib
        self.max_gen_toks = max_gen_toks
        self.add_bos_token = add_bos_token
        self.max_length = self.engine.max_length if max_length is None else max_length
        if not 1 < self.max_length <= self.engine.max_length:
            raise ValueError(
                f"max_length is {max_length}, not in [2, {self.engine.max_length}], the model's "
                "context"
            )
        self.compressed_tokens: dict[str, int] = {}  # of what was asked for, the most

    # ---- text and tokens

    @property
    def eot_token_id(self) -> int:
        """The end of a text."""
        if self.engine.eos_token_id is None:
            raise ValueError(f"{self.pretrained}: the tokenizer has no end-of-text token")
        return self.engine.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        return self.eot_token_id if self.engine.bos_token_id is None else self.engine.bos_token_id

    @property
    def tokenizer_name(self) -> str:
        """For the harness's caches of requests."""
        return f"{self.engine.name}-{self.pretrained}".replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; a BOS as the tokenizer or add_bos_token says, never two."""
        add_bos = self.add_bos_token if add_special_tokens is None else add_special_tokens
        bos = self.engine.bos_token_id
        if add_special_tokens is None and bos is not None:
            add_bos = False if has_bos_prefix(string, self.engine.token_text(bos)) else add_bos
        return self.engine.encode(string, add_bos)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The text of the model's template, for the results."""
        if chat_template is False or chat_template is None:
            return None
        return self.engine.chat_template

    def apply_chat_template(
        self, chat_history: list[Message], add_generation_prompt: bool = True
    ) -> str:
        """The prompt; without add_generation_prompt the last message is an answer that goes on."""
        if self.engine.chat_template is None:
            raise ValueError(f"{self.pretrained} has no chat template: give chat_template=NAME")
        if add_generation_prompt:
            return self.engine.render(chat_history)
        return self.engine.render(chat_history[:-1]) + chat_history[-1]["content"]

    # ---- what the harness asks

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        cut = [self._cut(context, continuation) for _, context, continuation in requests]
        with tqdm(total=len(cut), disable=disable_tqdm, desc="kvquant loglikelihood") as bar:
            scores = self.engine.score(
                cut, self.modes["likelihood"], lambda done, _total: bar.update(done - bar.n)
            )
        self._count("likelihood", [score[2] for score in scores])
        answers = [(log_likelihood, is_greedy) for log_likelihood, is_greedy, _ in scores]
        for (strings, _, _), answer in zip(requests, answers, strict=True):
            if strings is not None:
                self.cache_hook.add_partial("loglikelihood", strings, answer)
        return answers

    def _cut(self, context: list[int], continuation: list[int]) -> Request:
        """The last max_length tokens, beside the one that is only predicted."""
        if len(continuation) > self.max_length or not continuation:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens; from 1 to max_length, "
                f"{self.max_length}, can be scored"
            )
        return context[-(self.max_length + 1 - len(continuation)) :], continuation

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, cut into windows of max_length in which each token is scored once."""
        windows, owners = [], []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            for pair in utils.get_rolling_token_windows(
                token_list=tokens,
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *utils.make_disjoint_window(pair)))
                owners.append(index)
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for index, (log_likelihood, _) in zip(owners, scores, strict=True):
            totals[index] += log_likelihood
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, up to the first of their stop strings."""
        out = [""] * len(requests)
        batches = self._batches(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="kvquant generation") as bar:
            for batch in batches:
                kwargs = requests[batch[0]].args[1]
                normalized = normalize_gen_kwargs(kwargs, self.max_gen_toks)
                eos = self.engine.eos_token_id
                end = None if eos is None else self.engine.token_text(eos)
                until = handle_stop_sequences(list(normalized["until"]), eos=end)
                sampling = sampling_of(normalized, until)
                prompts = [
                    self._prompt(requests[index].args[0], sampling.max_tokens) for index in batch
                ]
                answers = self.engine.generate(prompts, sampling, self.modes["generation"])
                self._count("generation", [answer.compressed_tokens for answer in answers])
                for index, answer in zip(batch, answers, strict=True):
                    out[index] = postprocess_generated_text(answer.text, until, None)
                    self.cache_hook.add_partial("generate_until", requests[index].args, out[index])
                bar.update(len(batch))
        return out

    def _batches(self, requests: list[Any]) -> list[list[int]]:
        """Indices of requests with the same options, longest prompts first."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        batches = []
        for group in groups.values():
            group.sort(key=lambda index: -len(requests[index].args[0]))
            for begin in range(0, len(group), self.batch_size):
                batches.append(group[begin : begin + self.batch_size])
        return batches

    def _prompt(self, text: str, max_tokens: int) -> list[int]:
        room = self.max_length - max_tokens
        if room < 1:
            raise ValueError(
                f"{max_tokens} new tokens leave no room for a prompt in max_length, "
                f"{self.max_length}"
            )
        return self.tok_encode(text)[-room:]

    # ---- what the results say

    def _count(self, kind: str, compressed: list[int]) -> None:
        most = max(compressed, default=0)
        self.compressed_tokens[kind] = max(most, self.compressed_tokens.get(kind, 0))

    def get_model_info(self) -> dict[str, Any]:
        """spec, spec_resolved, mode of what was asked for, and what the model is.

        Where both likelihoods and answers were asked for, a dict has the last three for each.
        """
        asked = [kind for kind in MODES if kind in self.compressed_tokens] or list(MODES)
        per_kind: dict[str, dict[str, Any]] = {
            "spec_resolved": {k: with_windows(self.spec, self.modes[k]).resolved for k in asked},
            "mode": {kind: self.modes[kind] for kind in asked},
            "compressed_tokens": {kind: self.compressed_tokens.get(kind, 0) for kind in asked},
        }
        for kind, count in self.compressed_tokens.items():
            if count == 0 and self.spec != "fp16":
                logger.warning(
                    "no compressed token was read (%s): no result of %s", kind, self.spec
                )
        single = {name: values[asked[0]] for name, values in per_kind.items()}
        return {
            "spec": self.spec,
            **(single if len(asked) == 1 else per_kind),
            "calibration": self.calib,
            "backend": self.engine.name,
            **self.engine.info(),
        }


def _batch_size(given: int | str | None) -> int:
    if given is None:
        return 1
    if not str(given).isdigit() or int(given) < 1:
        raise ValueError(f"batch_size is '{given}', not a positive number")
    return int(given)


def _engine(
    backend: str,
    pretrained: str,
    options: CacheOptions,
    batch_size: int,
    device: str | None,
    weights: str,
    dtype: str,
    template: str,
) -> Backend:
    """The engine's runtime for models that it knows, else transformers, which is said.

    device is for transformers: the harness asks for "cuda:0" where nobody has said anything.
    """
    if backend not in ("auto", "native", "hf"):
        raise ValueError(f"backend is '{backend}', not 'auto', 'native' or 'hf'")
    if options.keys != "before-rope":
        if backend == "native":
            raise ValueError(f"keys={options.keys} is for transformers: backend=hf")
        backend = "hf"
    if backend != "hf":
        try:
            return NativeBackend(pretrained, options, weights, template)
        except FormatError as error:
            if backend == "native":
                raise
            logger.warning("the engine doesn't run this model: %s; backend=hf", error)
    from kvquant.lm_eval.transformers import TransformersBackend

    return TransformersBackend(pretrained, options, batch_size, device, dtype)
