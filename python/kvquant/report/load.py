"""What a folder of results says: documents of sweep, perplexity, eval and allocate."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

SCHEMA = 1
BASELINE = "fp16"
NOT_CALIBRATED = "not calibrated"
COMMANDS = ("sweep", "perplexity", "eval", "allocate")


@dataclass(frozen=True)
class Speed:
    """A configuration of a sweep that was measured, or found no memory."""

    spec: str
    spec_resolved: str
    prompt: int
    batch: int
    gen: int
    is_ok: bool
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    time_to_first_token_s: float | None = None
    requests_per_s: float | None = None
    cache_bytes: int | None = None
    peak_cache_bytes: int | None = None
    decode_joules_per_token: float | None = None
    prefill_joules_per_token: float | None = None
    is_energy_assumed: bool = False
    is_largest_batch: bool = False
    memory_budget: int | None = None  # bytes for caches
    energy_note: str = ""  # by which counters, or why not
    reason: str = ""


@dataclass(frozen=True)
class Quality:
    """A spec as perplexity judged it, with a calibration, on a text."""

    spec: str
    spec_resolved: str
    calibration: str  # name of the file, without the hash that sweep gives it
    fingerprint: str  # of the calibration
    text: str  # on what, and how: only results of the same are compared
    kl_mean: float | None
    perplexity: float | None
    top1_agreement: float | None
    true_bits: float | None


@dataclass(frozen=True)
class NeedleCell:
    spec: str
    length: int
    depth: float
    score: float  # from 0 to 1


@dataclass(frozen=True)
class LayerLoss:
    """What one side of one layer loses in a codec, all else fp16."""

    layer: int
    side: str  # "k" or "v"
    codec: str
    kl_mean: float


@dataclass
class Results:
    model: str
    machine: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    speeds: list[Speed] = field(default_factory=list)
    qualities: list[Quality] = field(default_factory=list)
    needles: list[NeedleCell] = field(default_factory=list)
    layers: list[LayerLoss] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)  # files and why, a line each

    @property
    def measured(self) -> list[Speed]:
        return [speed for speed in self.speeds if speed.is_ok]

    @property
    def calibrations(self) -> list[str]:
        """That of most results first."""
        count = Counter(q.calibration for q in self.qualities if q.spec != BASELINE)
        return [name for name, _ in count.most_common()]

    def name_of(self, quality: Quality) -> str:
        """The spec, and the calibration where there are several."""
        is_alone = len(self.calibrations) < 2 or quality.spec == BASELINE
        return quality.spec if is_alone else f"{quality.spec} ({quality.calibration})"


def _number(result: dict[str, Any], key: str) -> float | None:
    value = result.get(key)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and value is not None else None


def _count(result: dict[str, Any], key: str) -> int | None:
    value = _number(result, key)
    return None if value is None else int(value)


def _speed(result: dict[str, Any], config: dict[str, Any]) -> Speed:
    batch = int(result["batch"] or 0)  # 0: the largest, but not even one sequence fits
    return Speed(
        spec=str(result["spec"]),
        spec_resolved=str(result["spec_resolved"]),
        prompt=int(result["n_prompt"]),
        batch=batch,
        gen=int(result["n_gen"]),
        is_ok=result["status"] == "ok",
        prefill_tokens_per_s=_number(result, "prefill_tokens_per_s"),
        decode_tokens_per_s=_number(result, "decode_tokens_per_s"),
        time_to_first_token_s=_number(result, "time_to_first_token_s"),
        requests_per_s=_number(result, "requests_per_s"),
        cache_bytes=_count(result, "cache_bytes"),
        peak_cache_bytes=_count(result, "peak_cache_bytes"),
        decode_joules_per_token=_number(result, "decode_joules_per_token"),
        prefill_joules_per_token=_number(result, "prefill_joules_per_token"),
        is_energy_assumed=result.get("energy") == "assumed",
        is_largest_batch=bool(result.get("is_largest_batch", batch == 0)),
        memory_budget=_count(config, "memory_budget"),
        energy_note=str(result.get("energy_note", "")),
        reason=str(result.get("reason", "")),
    )


def _text_of(result: dict[str, Any], config: dict[str, Any]) -> str:
    text = f"{config.get('file', '?')} in windows of {config.get('window', '?')}"
    if config.get("max_windows"):
        text += f", at most {config['max_windows']}"
    if config.get("stride") != config.get("window"):
        text += f", every {config.get('stride')}"
    return f"{text}, {result.get('mode', '?')}"


def _quality(result: dict[str, Any], config: dict[str, Any]) -> Quality:
    calibration = config.get("calibration") or {}
    stem = Path(str(calibration.get("path") or NOT_CALIBRATED)).stem
    return Quality(
        spec=str(result["spec"]),
        spec_resolved=str(result["spec_resolved"]),
        calibration=re.sub(r"-[0-9a-f]{8}$", "", stem),
        fingerprint=str(calibration.get("fingerprint", "")),
        text=_text_of(result, config),
        kl_mean=_number(result, "kl_mean"),
        perplexity=_number(result, "perplexity"),
        top1_agreement=_number(result, "top1_agreement"),
        true_bits=_number(result, "true_bits"),
    )


def _needles(result: dict[str, Any]) -> list[NeedleCell]:
    if result.get("task") not in ("needle", "passkey"):
        return []
    metric = str(result["metric"])
    return [
        NeedleCell(
            str(result["spec"]), int(cell["context_length"]), float(cell["depth"]), cell[metric]
        )
        for cell in result.get("cells", [])
        if "depth" in cell
    ]


def _layers(document: dict[str, Any]) -> list[LayerLoss]:
    return [
        LayerLoss(int(row["layer"]), str(row["side"]), str(row["codec"]), float(row["kl_mean"]))
        for row in document.get("sensitivity", [])
    ]


def _add(document: dict[str, Any], out: Results) -> None:
    command = document["command"]
    config = document.get("config") or {}
    if command == "allocate" and out.layers:
        out.passed_over.append("allocate measured layers more than once: the first one counts")
    elif command == "allocate":
        out.layers = _layers(document)
    for result in document["results"]:
        if command == "sweep":
            if result.get("status") != "failed":
                out.speeds.append(_speed(result, config))
        elif command == "perplexity":
            out.qualities.append(_quality(result, config))
        elif command == "eval":
            out.needles.extend(_needles(result))
    if command == "sweep" or not out.machine:
        out.machine = document.get("machine") or {}
        out.config = config


def _read(path: Path) -> dict[str, Any] | str | None:
    """A document, or why it can't be used; None: not one of ours."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{path}: {error}"
    if not isinstance(document, dict) or "command" not in document:
        return None
    if document["command"] not in COMMANDS:
        return None
    if document.get("schema") != SCHEMA:
        return f"{path}: schema {document.get('schema')}, this version reads {SCHEMA}"
    if not isinstance(document.get("results"), list) or not isinstance(document.get("model"), dict):
        return f"{path}: no results of a model"
    return document


def _once(speeds: list[Speed], passed_over: list[str]) -> list[Speed]:
    """The first of those that measured the same."""
    seen: dict[tuple[object, ...], Speed] = {}
    for speed in speeds:
        budget = speed.memory_budget if speed.is_largest_batch else None
        key = (speed.spec, speed.prompt, speed.batch, speed.gen, speed.is_largest_batch, budget)
        if key in seen:
            passed_over.append(
                f"{speed.spec}, prompt {speed.prompt}, batch {speed.batch} was measured more than"
                " once: the first one counts"
            )
        seen.setdefault(key, speed)
    return sorted(seen.values(), key=lambda s: (s.prompt, s.batch))


def _comparable(qualities: list[Quality], passed_over: list[str]) -> list[Quality]:
    """Those on the text that most are on, each spec once for a calibration."""
    texts = Counter(quality.text for quality in qualities).most_common()
    for text, count in texts[1:]:
        passed_over.append(
            f"{count} results of perplexity on {text} are not compared with those on {texts[0][0]}"
        )
    seen: dict[tuple[str, str], Quality] = {}
    names: dict[str, str] = {}  # fingerprint -> name
    for quality in qualities:
        if quality.text != texts[0][0]:
            continue
        name = quality.calibration
        if quality.fingerprint not in names and name in names.values():
            name += f" {quality.fingerprint[:4]}"  # another of the same name
        name = names.setdefault(quality.fingerprint, name)
        is_baseline = quality.spec == BASELINE  # which no calibration changes
        seen.setdefault(
            (quality.spec, "" if is_baseline else name), replace(quality, calibration=name)
        )
    return list(seen.values())


def load_results(folder: Path, model: str | None = None) -> Results:
    """All *.json of a folder. ValueError when it has none, or of several models and none named."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of results")
    documents: list[dict[str, Any]] = []
    passed_over: list[str] = []
    for path in sorted(folder.glob("*.json")):
        read = _read(path)
        if isinstance(read, str):
            passed_over.append(read)
        elif read is not None:
            documents.append(read)
    models = sorted({str(document["model"].get("name")) for document in documents})
    if not documents:
        why = f" ({passed_over[0]})" if passed_over else ""
        raise ValueError(f"{folder} has no results of sweep, perplexity, eval or allocate{why}")
    if model is None and len(models) > 1:
        raise ValueError(f"{folder} has results of {', '.join(models)}: name one with --model")
    if model is not None and model not in models:
        raise ValueError(f"{folder} has no results of {model}, but of {', '.join(models)}")
    out = Results(model or models[0], passed_over=passed_over)
    for document in documents:
        if str(document["model"].get("name")) != out.model:
            continue
        try:
            _add(document, out)
        except (KeyError, TypeError, ValueError) as error:
            passed_over.append(f"a document of {document['command']} lacks or garbles {error}")
    out.speeds = _once(out.speeds, passed_over)
    out.qualities = _comparable(out.qualities, passed_over)
    return out
