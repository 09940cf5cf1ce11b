"""Weights & Biases offline runs and MLflow file stores, written by their own packages."""

from __future__ import annotations

import os
from pathlib import Path

from kvquant.export.load import Run

_MARK = "kvquant.run"  # tag of an MLflow run: the id of what it holds


def _is_new(folder: Path, run: Run) -> bool:
    return not (folder / f".exported-{run.id}").exists()


def _mark(folder: Path, run: Run) -> None:
    (folder / f".exported-{run.id}").touch()


def export_wandb(runs: list[Run], folder: Path, project: str) -> int:
    """Offline runs under FOLDER/wandb (`wandb sync` sends them); how many are new."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    folder.mkdir(parents=True, exist_ok=True)
    new = [run for run in runs if _is_new(folder, run)]
    for run in new:
        with wandb.init(
            project=project,
            id=run.id,  # synchronised twice it is one run
            name=run.name,
            job_type=run.command,
            config=run.config,
            dir=str(folder),
            mode="offline",
        ) as target:
            for step in range(max(map(len, run.lists.values()), default=0)):
                target.log({key: v[step] for key, v in run.lists.items() if step < len(v)}, step)
            target.summary.update(run.metrics)
    wandb.teardown()  # its process writes behind: now all is on disk
    for run in new:
        _mark(folder, run)
    return len(new)


def export_mlflow(runs: list[Run], folder: Path, project: str) -> int:
    """A file store (`mlflow ui --backend-store-uri FOLDER`); how many runs are new."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    folder.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(tracking_uri=folder.resolve().as_uri())
    known = client.get_experiment_by_name(project)
    experiment = client.create_experiment(project) if known is None else known.experiment_id
    count = 0
    for run in runs:
        query = f"tags.`{_MARK}` = '{run.id}' and attributes.status = 'FINISHED'"
        if client.search_runs([experiment], query, max_results=1):
            continue
        target = client.create_run(experiment, run_name=run.name).info.run_id
        metrics = [Metric(_name(key), value, 0, 0) for key, value in run.metrics.items()]
        for key, values in run.lists.items():
            metrics += [Metric(_name(key), v, 0, step) for step, v in enumerate(values)]
        params = [Param(_name(key), str(value)) for key, value in run.config.items()]
        for first in range(0, len(params), 100):  # as many as MLflow takes at a time
            client.log_batch(target, params=params[first : first + 100])
        for first in range(0, len(metrics), 1000):
            client.log_batch(target, metrics=metrics[first : first + 1000])
        client.log_batch(target, tags=[RunTag(_MARK, run.id), RunTag("command", run.command)])
        client.set_terminated(target)
        count += 1
    return count


def _name(key: str) -> str:
    """MLflow's names have letters, digits and a few signs."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in key)
