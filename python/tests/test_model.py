from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import kvquant
import numpy as np
import pytest
import torch

PROMPT = "The old man went down to the harbour and saw the sea."


def test_the_embedded_model_is_there(model: kvquant.Model) -> None:
    config = model.config
    assert (config["num_layers"], config["num_kv_heads"], config["head_dim"]) == (6, 2, 64)
    assert model.num_parameters > 5_000_000
    assert len(model.fingerprint) == 16
    with pytest.raises(kvquant.IoError, match="no-such-model"):
        kvquant.Model.load("no-such-model")
    with pytest.raises(ValueError, match="precision is 'f64'"):
        kvquant.Model.load("embedded", precision="f64")


def test_the_tokenizer_goes_both_ways(model: kvquant.Model) -> None:
    tokenizer = model.tokenizer
    ids = tokenizer.encode(PROMPT, add_special_tokens=False)
    assert tokenizer.decode(ids) == PROMPT
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(torch.tensor(ids)) == PROMPT
    assert max(ids) < tokenizer.vocab_size
    with pytest.raises(ValueError, match="99999"):
        tokenizer.decode([99999])
    with pytest.raises(TypeError, match="ids"):
        tokenizer.decode(["a"])  # type: ignore[list-item]


def test_scores_are_log_probabilities_of_forward(model: kvquant.Model) -> None:
    ids = model.tokenizer.encode(PROMPT)
    one_by_one = kvquant.Session(model, "fp16")
    expected = []
    for token, following in pairwise(ids):
        logits = torch.from_numpy(one_by_one.forward([token])).double()
        expected.append(float(torch.log_softmax(logits, 0)[following]))
    scores = kvquant.Session(model, "fp16").score(ids)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, atol=0.05)  # bf16 where the CPU has it
    session = kvquant.Session(model, "fp16")
    np.testing.assert_array_equal(session.score(PROMPT), scores)
    assert session.length == len(ids)
    assert session.tokens == ids


def test_generation_is_greedy_by_default_and_can_be_stopped(model: kvquant.Model) -> None:
    first = kvquant.Session(model, "nuq4-1%").generate(PROMPT, max_tokens=12)
    again = kvquant.Session(model, "nuq4-1%").generate(PROMPT, max_tokens=12)
    assert first["tokens"] == again["tokens"]
    assert len(first["tokens"]) == 12
    assert first["stop"] == "max_tokens"
    assert first["text"] == model.tokenizer.decode(first["tokens"])
    logits = kvquant.Session(model, "nuq4-1%").forward(PROMPT)
    assert first["tokens"][0] == int(np.argmax(logits))
    seen: list[int] = []

    def on_token(token: int) -> bool:
        seen.append(token)
        return len(seen) < 3

    stopped = kvquant.Session(model, "nuq4-1%").generate(PROMPT, on_token=on_token)
    assert stopped["stop"] == "caller"
    assert seen == stopped["tokens"] == first["tokens"][:3]
    stop = first["tokens"][4]
    ended = kvquant.Session(model, "nuq4-1%").generate(PROMPT, stop_tokens=[stop])
    assert ended["stop"] == "stop_token"
    assert stop not in ended["tokens"]
    drawn = {
        tuple(
            kvquant.Session(model).generate(PROMPT, max_tokens=8, temperature=1.5, seed=seed)[
                "tokens"
            ]
        )
        for seed in (1, 1, 2, 3)
    }
    assert 2 <= len(drawn) <= 3


def test_errors_of_a_callback_come_through(model: kvquant.Model) -> None:
    session = kvquant.Session(model)

    def fail(token: int) -> bool:
        raise KeyError(token)

    with pytest.raises(KeyError):
        session.generate(PROMPT, on_token=fail)

    def reenter(token: int) -> bool:
        session.forward([token])
        return True

    with pytest.raises(RuntimeError, match="in use"):
        session.generate([5], on_token=reenter)
    assert session.generate([5], max_tokens=1)["num_prompt_tokens"] == 1


def test_a_session_is_saved_and_goes_on(model: kvquant.Model, tmp_path: Path) -> None:
    session = kvquant.Session(model, "nuq3-1%")
    session.forward(20 * PROMPT)
    assert session.num_compressed_tokens == 0  # nothing has read the history yet
    session.forward([7])
    assert session.num_compressed_tokens > 64
    session.save(tmp_path / "long.kvq")
    other = kvquant.Session(model, "nuq3-1%")
    other.load(tmp_path / "long.kvq")
    assert other.tokens == session.tokens
    np.testing.assert_array_equal(other.forward([9]), session.forward([9]))
    with pytest.raises(kvquant.FormatError):
        kvquant.Session(model, "nuq4-1%").load(tmp_path / "long.kvq")
    length = session.length
    session.truncate(length - 1)
    assert session.length == length - 1
    session.restart()
    assert session.length == 0
    assert session.memory_bytes() < other.memory_bytes()


def test_mistakes_of_a_session(model: kvquant.Model) -> None:
    session = kvquant.Session(model, "fp16", context=16)
    with pytest.raises(ValueError, match="16"):
        session.forward(list(range(17)))
    with pytest.raises(ValueError, match="vocabulary"):
        session.forward([5000])
    with pytest.raises(ValueError, match="empty"):
        session.forward([])
    with pytest.raises(ValueError, match="tokens is float32"):
        session.forward(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="shape"):
        session.forward(np.zeros((1, 3), np.int64))
    with pytest.raises(ValueError, match="temp is -1"):
        session.generate("a", temperature=-1.0)
    with pytest.raises(ValueError, match="context"):
        kvquant.Session(model, context=4096)
    with pytest.raises(ValueError, match="mode"):
        kvquant.Session(model, mode="exact")
    assert session.length == 0


def test_the_collector_of_the_published_plan(model: kvquant.Model) -> None:
    collector = kvquant.ActivationCollector(model, max_samples=16)
    collector.install_hooks()
    for text in ("The quick brown fox", "A slow green turtle"):
        kvquant.Session(model).forward(model.tokenizer.encode(text)[:4])
        collector.increment_sample_count()
    collector.remove_hooks()
    kvquant.Session(model).forward("Not seen.")
    assert collector.num_samples == 2
    keys, values = collector.get_keys(layer_idx=0), collector.get_values(layer_idx=5)
    assert keys.shape == values.shape == (2, 2, 4, 64)
    assert np.abs(keys).max() > 0
    with pytest.raises(ValueError, match="layer"):
        collector.get_keys(layer_idx=6)
    with pytest.raises(ValueError, match="max_samples"):
        kvquant.ActivationCollector(model, max_samples=0)


def test_threads_of_python_take_turns(model: kvquant.Model) -> None:
    expected = kvquant.Session(model).generate(PROMPT, max_tokens=10)["tokens"]
    found: list[list[int]] = []

    def run() -> None:
        found.append(kvquant.Session(model).generate(PROMPT, max_tokens=10)["tokens"])

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_torch_keeps_its_threads(model: kvquant.Model) -> None:
    before = torch.get_num_threads()
    kvquant.Session(kvquant.Model.load("embedded")).forward(PROMPT)
    assert torch.get_num_threads() == before
