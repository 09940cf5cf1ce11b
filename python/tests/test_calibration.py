"""Calibration files from Python against those of the program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import kvquant
import numpy as np
import pytest
import torch
from hf_models import EMBEDDED, embedded, make, tiny
from kvquant.hf.fingerprint import fingerprint_of
from kvquant.hf.streaming import stream_layers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FEW: dict[str, Any] = {"samples": 3, "seq_len": 64}
TEXT = Path(kvquant.find_asset("sample.txt"))


def run_program(output: Path, *more: str) -> bytes:
    command = [
        sys.executable,
        "-m",
        "kvquant",
        "calibrate",
        "-m",
        str(EMBEDDED),
        "--quiet",
        "-t",
        "1",
    ]
    command += ["--samples", "3", "--seq-len", "64", "-o", str(output), *more]
    subprocess.run(command, check=True, capture_output=True)
    return output.read_bytes()


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program's file of the embedded model."""
    path = tmp_path_factory.mktemp("calibration") / "program.safetensors"
    run_program(path)
    return path


def test_a_models_file_is_the_programs(model: kvquant.Model, whole: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    output = tmp_path / "own.safetensors"
    result = kvquant.calibrate(
        model, TEXT, output=output, **FEW, on_progress=lambda *at: steps.append(at)
    )
    assert output.read_bytes() == whole.read_bytes()
    assert steps[-1] == (6 * 4, 6 * 4)
    assert (result["num_samples"], result["tokens"], result["rank"]) == (3, 192, 64)
    assert result["model_fingerprint"] == model.fingerprint
    kvquant.calibrate(model, output=output, **FEW, recipe="percentile", codebook_per="head")
    assert output.read_bytes() == run_program(
        tmp_path / "other.safetensors", "--recipe", "percentile", "--codebook-per", "head"
    )


def test_the_same_activations_give_the_same_bytes(model: kvquant.Model, tmp_path: Path) -> None:
    """Those of the engine, handed over as another runtime would."""
    output = tmp_path / "fitted.safetensors"
    options = kvquant.CalibrateOptions(**FEW, bases="values")
    tokens = model.tokenizer.encode(TEXT.read_text(), add_special_tokens=False, parse_special=False)
    samples, texts = kvquant.choose_samples([(str(TEXT), tokens)], 0, options)
    config = model.config
    heads, dim = config["num_kv_heads"], config["head_dim"]
    fit = kvquant.CalibrationFit(
        6, config["num_q_heads"], heads, dim, model.fingerprint, options, texts,
        [config["rope_theta"] ** (-2 * c / dim) for c in range(dim // 2)],
    )  # fmt: skip
    weights = load_file(EMBEDDED / "model.safetensors")
    collector = kvquant.ActivationCollector(model, max_samples=len(samples))
    collector.install_hooks()
    for sample in samples:
        kvquant.Session(model, "fp16").forward(sample)
        collector.increment_sample_count()
    collector.remove_hooks()
    for layer in range(6):
        queries, keys, values = (
            np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(len(samples) * 64, -1, dim)
            for x in (
                collector.get_queries(layer),
                collector.get_keys(layer),
                collector.get_values(layer),
            )
        )
        weight = weights[f"model.layers.{layer}.self_attn.o_proj.weight"]
        fit.add_layer(queries, keys, values, weight)
    fit.save(output)
    program = run_program(tmp_path / "program.safetensors", "--bases", "values")
    assert output.read_bytes() == program


def test_a_transformers_models_file_is_close_to_the_programs(
    model: kvquant.Model, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "hf.safetensors"
    steps: list[tuple[int, int]] = []
    kvquant.calibrate(
        embedded(),
        TEXT,
        output=output,
        tokenizer=model.tokenizer,
        **FEW,
        on_progress=lambda *at: steps.append(at),
    )
    assert steps == [(i, 6) for i in range(1, 7)]
    assert metadata(output) == metadata(whole)
    ours, theirs = load_file(output), load_file(whole)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        if name.endswith(("gram", "mean", "second_moment", "spectrum")):
            scale = expected.float().abs().max()
            assert (ours[name].float() - expected.float()).abs().max() < 0.05 * scale, name
    ids = torch.tensor([model.tokenizer.encode(TEXT.read_text())[:200]])
    logits = [
        embedded()(ids, past_key_values=make(embedded(), "nuq4-1%", calibration=file)).logits
        for file in (output, whole)
    ]
    plain = embedded()(ids).logits
    errors = [(x - plain).square().mean() for x in logits]
    assert errors[0] < 1.2 * errors[1]


@pytest.mark.parametrize("name", ["llama", "yarn", "mistral", "qwen3"])
def test_streamed_layers_are_what_a_whole_pass_computes(name: str) -> None:
    hf = tiny(name)
    samples = [[3 + (i * k) % 100 for i in range(40)] for k in (1, 7)]
    collector = kvquant.ActivationCollector(hf, max_samples=2)
    collector.install_hooks()
    hf(torch.tensor(samples))
    collector.increment_sample_count()
    collector.remove_hooks()
    for index, layer in enumerate(stream_layers(hf, samples)):
        for found, expected in (
            (layer.keys, collector.get_keys(index)),
            (layer.values, collector.get_values(index)),
        ):
            rows = expected.transpose(1, 2).reshape(found.shape)
            torch.testing.assert_close(found, rows, rtol=1e-4, atol=1e-4)
        assert layer.queries.shape == (80, 4, 32)
        assert layer.output_weight.shape == (128, 128)
    assert index == 1


class Letters:
    """A tokenizer for models that have none."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return ([1] if add_special_tokens else []) + [3 + ord(letter) % 120 for letter in text]


@pytest.mark.parametrize("name", ["yarn", "mistral", "qwen2", "qwen3"])
def test_models_of_other_runtimes_are_calibrated_and_use_it(name: str, tmp_path: Path) -> None:
    hf, file = tiny(name), tmp_path / "tiny.safetensors"
    kvquant.calibrate(hf, output=file, tokenizer=Letters(), **FEW)
    assert metadata(file)["model_fingerprint"] == fingerprint_of(hf)
    ids = torch.tensor([Letters().encode(TEXT.read_text()[:100], add_special_tokens=True)])
    plain = hf(ids).logits
    for spec in ("nuq4-1%", "k=fp16,v=pca16"):
        cache = make(hf, spec, calibration=file, mode="strict")
        error = (hf(ids, past_key_values=cache).logits - plain).std() / plain.std()
        assert 0 < error < 0.7, (spec, error)


def test_calibrations_of_other_models_are_refused(whole: Path, tmp_path: Path) -> None:
    make(embedded(), "nuq4-1%", calibration=whole)
    changed = tmp_path / "changed.safetensors"
    about = metadata(whole) | {"model_fingerprint": "0" * 16}
    save_file(load_file(whole), changed, about)
    with pytest.raises(
        ValueError, match=r"made for another model \(fingerprint \"0000000000000000"
    ):
        make(embedded(), "nuq4-1%", calibration=changed)
    with pytest.raises(ValueError, match="made for another model"):
        make(embedded().config, "nuq4-1%", calibration=changed)  # it says where it is from
    with pytest.raises(ValueError, match="made for another model"):
        make(tiny("llama"), "nuq4-1%", calibration=whole)
    with pytest.raises(ValueError, match="made for another model"):
        kvquant.QuantizedModelWrapper(embedded(), "nuq4-1%", calibration=changed).patch()


@pytest.mark.parametrize("name", ["yarn", "qwen3"])
def test_low_rank_sides_are_expanded_without_fused_attention(name: str, tmp_path: Path) -> None:
    hf, file = tiny(name), tmp_path / "tiny.safetensors"
    kvquant.calibrate(hf, output=file, tokenizer=Letters(), samples=3, seq_len=64)
    ids = torch.tensor([Letters().encode(TEXT.read_text()[:180], add_special_tokens=True)])
    for spec in (
        "k=fp16,v=pca16",
        "v=pca24+int8,k=nuq4",
        "k=pca24,v=fp16",
        "k=pca16+int8,v=pca16+int4",
    ):
        logits = []
        for fused in (True, False):
            cache = make(hf, spec, calibration=file, mode="strict", fused=fused)
            first = hf(ids[:, :120], past_key_values=cache).logits
            logits.append(torch.cat([first, hf(ids[:, 120:], past_key_values=cache).logits], 1))
            assert cache.num_compressed_tokens() > 0
        apart, lost = logits[0] - logits[1], logits[1] - hf(ids).logits
        assert float(apart.abs().mean()) < 0.1 * float(lost.abs().mean())


def test_fisher_information_is_what_finite_differences_say(tmp_path: Path) -> None:
    hf, file = tiny("llama"), tmp_path / "fisher.safetensors"
    text = tmp_path / "a.txt"
    text.write_text("The dog ran to the park and saw")
    kvquant.estimate_fisher(hf, text, output=file, tokenizer=Letters(), samples=1, seq_len=16)
    found = load_file(file)
    assert set(found) == {f"fisher.{side}.{layer}" for side in ("key", "value") for layer in (0, 1)}
    ids = torch.tensor([Letters().encode(text.read_text(), add_special_tokens=True)[:16]])
    channel, step, total = 5, 1e-2, 0.0
    for token in range(16):
        losses = []
        for sign in (1, -1):

            def push(_m: Any, _a: Any, out: torch.Tensor, at: int = token, by: int = sign) -> Any:
                out = out.clone()
                out[0, at, channel] += by * step
                return out

            handle = hf.model.layers[1].self_attn.v_proj.register_forward_hook(push)
            logits = hf(ids).logits[0, :-1].double()
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            handle.remove()
        total += float((losses[0] - losses[1]) / (2 * step)) ** 2
    assert found["fisher.value.1"][channel] == pytest.approx(total / 16, rel=0.05)
    assert all(parameter.grad is None for parameter in hf.parameters())


def test_the_program_reads_fisher_information(model: kvquant.Model, tmp_path: Path) -> None:
    fisher, output = tmp_path / "fisher.safetensors", tmp_path / "weighted.safetensors"
    kvquant.estimate_fisher(
        embedded(), TEXT, output=fisher, tokenizer=model.tokenizer, samples=2, seq_len=64
    )
    program = run_program(output, "--codebook-weights", "fisher", "--fisher", str(fisher))
    own = tmp_path / "own.safetensors"
    kvquant.calibrate(model, output=own, **FEW, codebook_weights="fisher", fisher=fisher)
    assert own.read_bytes() == program
    assert "weights=fisher" in metadata(own)["recipe"]


def test_mistakes_are_refused(model: kvquant.Model, tmp_path: Path) -> None:
    output = tmp_path / "never.safetensors"
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"recipe": "best"}, "recipe 'best'"),
        ({"seq_len": 4096}, "4096"),
        ({"rank": 65}, "rank 65"),
        ({"codebook_weights": "fisher"}, "need each other"),
    ]
    for options, message in mistakes:
        with pytest.raises(ValueError, match=message):
            kvquant.calibrate(model, output=output, **{**FEW, **options})
    with pytest.raises(ValueError, match="tokenizer is None"):
        kvquant.calibrate(embedded(), output=output)
    with pytest.raises(ValueError, match="no gradients"):
        kvquant.estimate_fisher(model, output=output)
    with kvquant.QuantizedModelWrapper(embedded(), "nuq3"), pytest.raises(ValueError, match="unp"):
        kvquant.calibrate(embedded(), output=output, tokenizer=model.tokenizer, **FEW)
    assert not output.exists()


def test_out_of_memory_says_what_to_do(
    model: kvquant.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("kvquant.hf.calibration.stream_layers", fail)
    with pytest.raises(kvquant.OutOfMemory, match=r"OOM during calibration: .* fewer samples than"):
        kvquant.calibrate(embedded(), output=tmp_path / "x", tokenizer=model.tokenizer, **FEW)


def test_tune_finds_a_preset_or_says_why_not(tmp_path: Path) -> None:
    few: dict[str, Any] = {
        "samples": 4,
        "windows": 2,
        "test_windows": 2,
        "ctx": 256,
        "target": "kv",
    }
    preset = kvquant.tune(
        "embedded",
        output=tmp_path / "mine.json",
        target_ppl_delta=0.5,
        rank_grid=["none"],
        codecs=["nuq4-1%"],
        **few,
    )
    assert "nuq4-1%" in preset.spec
    assert Path(preset.calibration_path).is_file()
    with pytest.raises(ValueError, match="PPL degradation too high"):
        kvquant.tune(
            "embedded", output=tmp_path / "no.json", target_ppl_delta=0, rank_grid=["none"],
            codecs=["nuq2"], **few,
        )  # fmt: skip
    assert not (tmp_path / "no.json").exists()
    with pytest.raises(ValueError, match="no-such-codec"):
        kvquant.tune("embedded", output=tmp_path / "no.json", codecs=["no-such-codec"])
