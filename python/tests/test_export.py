from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kvquant.export.__main__ import main
from kvquant.export.load import load_runs


def write(folder: Path, name: str, **more: Any) -> None:
    result = {
        "spec": "nuq4",
        "batch": 2,
        "status": "ok",
        "decode_tokens_per_s": 12.5,
        "decode_joules": None,
        "prefill_samples_s": [0.1, 0.2],
    }
    document = {
        "schema": 1,
        "command": "sweep",
        "model": {"name": "tiny"},
        "config": {"seed": 42, "backends": ["avx2"]},
        "machine": {"commit": "abc"},
        "results": [result | more],
    }
    (folder / name).write_text(json.dumps(document))


def test_a_run_has_configuration_figures_and_provenance(tmp_path: Path) -> None:
    write(tmp_path, "a.json")
    runs, passed_over = load_runs(tmp_path)
    assert passed_over == []
    (run,) = runs
    assert run.metrics == {"decode_tokens_per_s": 12.5}
    assert run.lists == {"prefill_samples_s": [0.1, 0.2]}
    wanted = {"model.name": "tiny", "config.seed": 42, "machine.commit": "abc", "batch": 2}
    assert run.config | wanted == run.config


def test_the_same_result_is_the_same_run(tmp_path: Path) -> None:
    write(tmp_path, "a.json")
    write(tmp_path, "b.json")
    write(tmp_path, "c.json", decode_tokens_per_s=13)
    assert len(load_runs(tmp_path)[0]) == 2


def test_what_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--to", "mlflow", "-o", str(tmp_path / "out")]
    assert main([str(tmp_path), *command]) == 2
    assert main([str(tmp_path / "nowhere"), *command]) == 2
    (tmp_path / "later.json").write_text('{"schema": 2, "command": "sweep", "results": []}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "strange.json").write_text('{"schema": 1, "command": "sweep"}')
    (tmp_path / "other.json").write_text("[]")
    assert main([str(tmp_path), *command]) == 2
    assert "has no results (" in capsys.readouterr().err
    write(tmp_path, "a.json")
    runs, passed_over = load_runs(tmp_path)
    assert (len(runs), len(passed_over)) == (1, 3)
    assert "schema 2, this version reads 1" in passed_over[1]


@pytest.mark.filterwarnings("default")
def test_mlflow_has_every_run_once(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    write(tmp_path, "a.json")
    store = tmp_path / "store"
    for _ in range(2):
        assert main([str(tmp_path), "--to", "mlflow", "-o", str(store)]) == 0
    client = MlflowClient(tracking_uri=store.as_uri())
    experiment = client.get_experiment_by_name("kvquant")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["decode_tokens_per_s"] == 12.5
    assert run.data.params["machine.commit"] == "abc"
    history = client.get_metric_history(run.info.run_id, "prefill_samples_s")
    assert sorted((m.step, m.value) for m in history) == [(0, 0.1), (1, 0.2)]


@pytest.mark.filterwarnings("default")
def test_wandb_has_every_run_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb")
    write(tmp_path, "a.json")
    store = tmp_path / "store"
    for said in ("1 new runs, 0 were there", "0 new runs, 1 were there"):
        assert main([str(tmp_path), "--to", "wandb", "-o", str(store)]) == 0
        assert said in capsys.readouterr().out
    (folder,) = (store / "wandb").glob("offline-run-*")
    (log,) = folder.glob("*.wandb")
    assert b"decode_tokens_per_s" in log.read_bytes()


def test_runs_of_other_calibrations_have_other_names(tmp_path: Path) -> None:
    for name in ("exact", "lloyd"):
        write(tmp_path, f"{name}.json", mode="strict", kl_mean=0.02)
        document = json.loads((tmp_path / f"{name}.json").read_text())
        document["config"]["calibration"] = {"path": f"x/{name}.safetensors", "fingerprint": name}
        (tmp_path / f"{name}.json").write_text(json.dumps(document | {"command": "perplexity"}))
    runs, _ = load_runs(tmp_path)
    assert [run.name for run in runs] == ["nuq4_strict_exact", "nuq4_strict_lloyd"]
    assert runs[0].metrics["kl_mean"] == 0.02
    assert runs[0].config["config.calibration.fingerprint"] == "exact"
