from __future__ import annotations

import kvquant
import numpy as np
import pytest

TEXT = "The old man went down to the harbour. He saw the sea, and a boat came in. " * 12


def test_the_call_of_the_published_plan(model: kvquant.Model) -> None:
    tokenizer = model.tokenizer
    result = kvquant.evaluate_perplexity(model, tokenizer, max_seq_len=2048, stride=512)
    assert 20 < result["perplexity"] < 200
    assert result["text"] == "sample.txt"
    assert result["spec_resolved"].startswith("k=fp16,v=fp16")


def test_perplexity_is_that_of_scores(model: kvquant.Model) -> None:
    result = kvquant.evaluate_perplexity(model, text=TEXT, max_seq_len=512, stride=0)
    ids = model.tokenizer.encode(TEXT, add_special_tokens=False)
    bos = [model.tokenizer.bos_token_id] if len(model.tokenizer.encode("")) == 1 else []
    assert len(ids) + len(bos) <= 512  # one window
    scores = kvquant.Session(model, "fp16", mode="strict").score(bos + ids)
    assert result["tokens"] == len(scores)
    assert result["perplexity"] == pytest.approx(float(np.exp(-scores.mean())), rel=1e-4)
    assert result["ppl_delta"] == 0


class WordTokenizer:
    """A stranger's tokenizer over the same ids."""

    def __init__(self, model: kvquant.Model) -> None:
        self.tokenizer = model.tokenizer

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return self.tokenizer.encode(text, add_special_tokens=False)


def test_several_specs_in_one_pass(model: kvquant.Model) -> None:
    results = kvquant.evaluate_perplexity(
        model, WordTokenizer(model), TEXT, max_seq_len=256, stride=256, kv=["nuq2-1%", "nuq4-1%"]
    )
    coarse, fine = results
    assert (coarse["spec"], coarse["mode"]) == ("nuq2-1%", "strict")
    assert coarse["kl_mean"] > 2 * fine["kl_mean"] > 0
    assert coarse["true_bits"] < fine["true_bits"] < 16
    assert fine["compressed_tokens"] > 0
    one = kvquant.evaluate_perplexity(
        model, text=TEXT, max_seq_len=256, stride=256, kv=kvquant.CacheSpec("nuq4-1%")
    )
    assert one["perplexity"] == fine["perplexity"]


def test_mistakes_are_named(model: kvquant.Model) -> None:
    with pytest.raises(ValueError, match="window of 4096"):
        kvquant.evaluate_perplexity(model, max_seq_len=4096)
    with pytest.raises(ValueError, match="two tokens"):
        kvquant.evaluate_perplexity(model, text="")
    with pytest.raises(ValueError, match="position"):
        kvquant.evaluate_perplexity(model, text=TEXT, kv="nuq4-1%,nuq")
    with pytest.raises(ValueError, match="stride"):
        kvquant.evaluate_perplexity(model, text=TEXT, max_seq_len=128, stride=-1)
