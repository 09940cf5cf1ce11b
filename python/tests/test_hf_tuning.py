"""Tuning of transformers models: the choice is the engine's, what it measures is torch's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kvquant
import pytest
import torch
from hf_models import VOCAB, embedded, generate, tiny, tokens
from kvquant import create_cache_from_preset

TEXT = Path(kvquant.find_asset("sample.txt"))
FEW: dict[str, Any] = {"samples": 2, "seq_len": 64, "ctx": 512, "windows": 2, "test_windows": 2}


class Letters:
    """A tokenizer of its own: one token for a character, and one before a text."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [1] * add_special_tokens + [3 + ord(c) % (VOCAB - 3) for c in text[:4000]]


def tuned(model: Any, output: Path, **options: Any) -> kvquant.Preset:
    settings: dict[str, Any] = {"target": "kv", "rank_grid": ["none"], "codecs": ["int8", "nuq4"]}
    settings |= {"target_ppl_delta": 5.0, **FEW, **options}
    return kvquant.tune(model, TEXT, output=output, tokenizer=Letters(), **settings)


def test_a_model_that_no_file_holds_gets_a_preset(tmp_path: Path) -> None:
    hf, file = tiny("qwen3"), tmp_path / "mine.json"
    preset = tuned(hf, file)
    assert preset.spec in ("k=int8,v=int8", "k=nuq4,v=nuq4")
    assert (preset.num_layers, preset.head_dim, preset.model) == (2, 32, "qwen3")
    assert preset.window == 512
    assert preset.eval_tokens == 2 * 511  # the token before a text is not scored
    assert preset.path == str(file)
    assert Path(preset.calibration_path).is_file()
    cache = create_cache_from_preset(file, model=hf)
    assert generate(hf, tokens(1, 200), cache).shape == (1, 208)
    assert cache.num_compressed_tokens() > 0
    with pytest.raises(ValueError, match="made for"):  # same shape and type, other weights
        create_cache_from_preset(file, model=_other_weights())
    with pytest.raises(ValueError, match="another model"):
        create_cache_from_preset(file, model=embedded())


def _other_weights() -> Any:
    torch.manual_seed(7)
    return type(tiny("qwen3"))(tiny("qwen3").config).eval()


def test_a_preset_without_calibration_is_checked_too(tmp_path: Path) -> None:
    hf, file = tiny("qwen3"), tmp_path / "mine.json"
    preset = tuned(hf, file, codecs=["int8"])
    fields = json.loads(file.read_text())
    for key, value in list(fields.items()):
        if value == preset.calibration_file:
            del fields[key]
    bare = kvquant.parse_preset(json.dumps(fields), str(tmp_path / "bare.json"))
    assert not bare.calibration_path
    create_cache_from_preset(bare, model=hf)
    with pytest.raises(ValueError, match="was made for"):
        create_cache_from_preset(bare, model=_other_weights())


def test_the_preset_says_what_evaluate_perplexity_finds(tmp_path: Path) -> None:
    hf = tiny("qwen3")
    preset = tuned(hf, tmp_path / "mine.json", kv=["int8"], codecs=[])
    ids = Letters().encode(TEXT.read_text(encoding="utf-8"), add_special_tokens=False)
    fields = json.loads((tmp_path / "mine.json").read_text())
    begin = fields["eval_begin"]
    from kvquant.hf.perplexity import evaluate_windows

    windows = [([1, *ids[at : at + 511]], 1) for at in (begin, begin + 511)]
    calibration = preset.calibration_path or None
    found = evaluate_windows(hf, windows, [kvquant.CacheSpec("int8")], "strict", 512, calibration)
    assert preset.compressed_ppl == pytest.approx(found[0]["perplexity"], rel=1e-6)
    assert preset.kl_divergence == pytest.approx(found[0]["kl_mean"], rel=1e-6)
    assert preset.true_bits == pytest.approx(found[0]["true_bits"], rel=0.02)


def test_torch_and_the_engine_choose_alike(model: kvquant.Model, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"target": "kv", "rank_grid": ["none"], "target_ppl_delta": 0.2}
    settings |= {"codecs": ["int8", "nuq4-1%"], **FEW, "ctx": 256}
    engine = kvquant.tune(model, TEXT, output=tmp_path / "engine.json", **settings)
    hf = kvquant.tune(
        embedded(), TEXT, output=tmp_path / "hf.json", tokenizer=model.tokenizer, **settings
    )
    assert (hf.spec, hf.model, hf.model_fingerprint) == (
        engine.spec,
        engine.model,
        engine.model_fingerprint,
    )
    assert hf.compressed_ppl == pytest.approx(engine.compressed_ppl, rel=0.02)
    assert hf.true_bits == pytest.approx(engine.true_bits, rel=0.01)
    # They are presets for each other.
    assert (
        kvquant.Session(kvquant.Model.load("embedded", calibration=hf.calibration_path), kv=hf.spec)
        .forward("A")
        .shape
    )
    create_cache_from_preset(engine, model=embedded())


def test_low_rank_candidates_are_tried(tmp_path: Path) -> None:
    preset = tuned(
        tiny("qwen3"), tmp_path / "low.json", target="v", rank_grid=[28], bits_options=[8],
        codecs=[], target_ppl_delta=50.0,
    )  # fmt: skip
    assert preset.spec.startswith("v=pca28+int8")
    assert preset.rank == 28
    cache = create_cache_from_preset(preset, model=tiny("qwen3"))
    generate(tiny("qwen3"), tokens(1, 200), cache)


def test_a_second_run_measures_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tuned(tiny("llama"), tmp_path / "mine.json").to_json()

    def fail(*_args: Any, **_options: Any) -> None:
        raise AssertionError("measured or calibrated again")

    monkeypatch.setattr("kvquant.hf.tuning.evaluate_windows", fail)
    monkeypatch.setattr("kvquant.hf.tuning.calibrate", fail)
    assert tuned(tiny("llama"), tmp_path / "mine.json").to_json() == first
    with pytest.raises(AssertionError):
        tuned(tiny("llama"), tmp_path / "mine.json", codecs=["nuq2"])


def test_mistakes_are_refused(tmp_path: Path) -> None:
    hf, output = tiny("llama"), tmp_path / "never.json"
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"target_ppl_delta": 0.0, "codecs": ["nuq2"]}, "PPL degradation too high"),
        ({"target_ppl_delta": -1.0}, "budget of -1"),
        ({"codecs": ["no-such-codec"]}, "no-such-codec"),
        ({"ctx": 4096}, r"4096, not in \[2, 1024\]"),
        ({"windows": 400}, "too short"),
        ({"rank_grid": ["many"]}, "many"),
        ({"threads": 2}, "no option threads"),
        ({"target": "q"}, "q"),
    ]
    for options, message in mistakes:
        with pytest.raises(ValueError, match=message):
            tuned(hf, output, **options)
    with pytest.raises(ValueError, match="tokenizer is None"):
        kvquant.tune(hf, TEXT, output=output)
    with pytest.raises(FileNotFoundError, match="Calibration file not found"):
        tuned(hf, output, calib=tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="folder"):
        tuned(hf, tmp_path / "nowhere/x.json")
    assert not output.exists()
