"""What is exported: a run for every result of a folder."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """One result: what was measured on what, and what came of it."""

    id: str  # of the content: the same result is the same run
    name: str
    command: str  # "sweep", "perplexity", …
    config: dict[str, Any]  # flat: what was asked for, the model, the machine, versions
    metrics: dict[str, float]
    lists: dict[str, list[float]]  # samples


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, list):
        yield prefix, json.dumps(value)
    else:
        yield prefix, value


# Numbers of a result that say what was measured, not what came of it.
_ASKED = {"n_prompt", "n_gen", "n_depth", "batch", "threads", "context_length", "seed"}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _run(document: dict[str, Any], result: dict[str, Any]) -> Run:
    config: dict[str, Any] = {}
    for part in ("model", "config", "machine"):
        config.update(_flat(part, document.get(part) or {}))
    metrics: dict[str, float] = {}
    lists: dict[str, list[float]] = {}
    for key, value in _flat("", {k: v for k, v in result.items() if not isinstance(v, list)}):
        if _is_number(value) and key not in _ASKED:
            metrics[key] = float(value)
        elif value is not None:
            config[key] = value
    for key, value in result.items():
        if isinstance(value, list) and value and all(map(_is_number, value)):
            lists[key] = [float(number) for number in value]
    text = json.dumps([document["command"], config, metrics, lists], sort_keys=True)
    names = [str(result[key]) for key in ("name", "task", "spec", "test", "mode") if key in result]
    calibration = (document.get("config") or {}).get("calibration") or {}
    if calibration.get("path"):
        names.append(Path(str(calibration["path"])).stem)
    name = names[0] if "name" in result else "_".join(names) or document["command"]
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Run(digest, name, document["command"], config, metrics, lists)


def load_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """(runs, files passed over and why). ValueError where there is nothing."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of results")
    runs: dict[str, Run] = {}
    passed_over: list[str] = []
    for path in sorted(folder.glob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(document, dict) or "command" not in document:
                continue
            if document.get("schema") != SCHEMA:
                raise ValueError(f"schema {document.get('schema')}, this version reads {SCHEMA}")
            for result in document["results"]:
                run = _run(document, result)
                runs.setdefault(run.id, run)
        except (OSError, ValueError) as error:
            passed_over.append(f"{path}: {error}")
        except (KeyError, TypeError, AttributeError) as error:
            passed_over.append(f"{path}: lacks or garbles {error}")
    if not runs:
        why = f" ({passed_over[0]})" if passed_over else ""
        raise ValueError(f"{folder} has no results{why}")
    return list(runs.values()), passed_over
