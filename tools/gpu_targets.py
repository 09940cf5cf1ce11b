"""What an H200 is asked for, beside what tools/gpu_check measured: ratios within one run.

A target has a name, the ratio that was `asked`, whether it is the `least` or the `most`, the
`measured` one (null: not measured, `why` says it) and `met`: true, false or null (not measured,
or not with the shapes that the target is about).
"""

import json
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

Row = dict[str, Any]
Ratio = Callable[[], float]

DECODE = {
    32: {"nuq4-1%": 3.0, "nuq3-1%": 3.5, "nuq2-1%": 4.0},
    8: {"nuq4-1%": 2.5, "nuq3-1%": 3.0, "nuq2-1%": 3.5},
}


class MissingError(Exception):
    """A figure that was not measured; the message says why."""


def read(file: pathlib.Path) -> Row:
    """A document of results. Raises MissingError where a step left none."""
    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError):
        document = None
    if not isinstance(document, dict):
        raise MissingError(f"{file.name} has no results")
    return document


def pick(document: Row, **wanted: object) -> Row:
    """The result whose fields are these."""
    rows: list[Row] = document["results"]
    for row in rows:
        if all(row.get(name) == value for name, value in wanted.items()):
            return row
    what = ", ".join(f"{name} {value}" for name, value in wanted.items())
    raise MissingError(f"no result of {what}")


def figure(row: Row, name: str) -> float:
    if row.get("is_right") is False:
        raise MissingError("the kernel's result is wrong: its time does not count")
    if not isinstance(row.get(name), int | float):
        raise MissingError(
            str(row.get("error") or row.get("energy_note") or f"{name} is not there")
        )
    return float(row[name])


def decode_ratio(out: pathlib.Path, num_kv_heads: int, spec: str) -> float:
    """Decode attention: time of fp16 over that of codes."""
    rows = read(out / "timing.json")
    fp16, coded = (
        figure(pick(rows, what="decode", num_kv_heads=num_kv_heads, spec=text), "ms_median")
        for text in ("fp16", spec)
    )
    return fp16 / coded


def torch_ratio(out: pathlib.Path, what: str, num_kv_heads: int, spec: str, backend: str) -> float:
    """Time of torch's fp16 attention over that of ours over codes."""
    ours = pick(read(out / "timing.json"), what=what, num_kv_heads=num_kv_heads, spec=spec)
    torch = pick(read(out / "torch.json"), what=what, backend=backend, num_kv_heads=num_kv_heads)
    return figure(torch, "ms_median") / figure(ours, "ms_median")


def bandwidth_share(out: pathlib.Path) -> float:
    """Bytes of codes per second over those of a copy within the device."""
    timing = read(out / "timing.json")
    coded = pick(timing, what="decode", num_kv_heads=32, spec="nuq4")
    return figure(coded, "cache_gb_per_s") / figure(timing["config"], "copy_gb_per_s")


def prefill_ratio(out: pathlib.Path, spec: str) -> float:
    """Speed of the model's prefill of 16K tokens over that with fp16."""
    budget = read(out / "budget.json")
    rows = {text: pick(budget, spec=text) for text in ("fp16", spec)}
    return figure(rows["fp16"], "prefill_s") / figure(rows[spec], "prefill_s")


def budget_ratio(out: pathlib.Path, name: str) -> float:
    """Of nuq3-1% over fp16 in a cache budget."""
    budget = read(out / "budget.json")
    fp16, coded = (figure(pick(budget, spec=text), name) for text in ("fp16", "nuq3-1%"))
    return coded / fp16


def batch_share(out: pathlib.Path) -> float:
    """How much of the ratio of bytes the ratio of largest batches is."""
    return budget_ratio(out, "batch") * budget_ratio(out, "bytes_per_sequence")


def not_timed(what: str) -> float:
    raise MissingError(what)


def list_targets(out: pathlib.Path) -> list[tuple[str, str, float, Ratio]]:
    """Names, `least` or `most`, what is asked for, functions that give the ratio."""
    targets: list[tuple[str, str, float, Ratio]] = []

    def add(name: str, bound: str, asked: float, ratio: Ratio) -> None:
        targets.append((name, bound, asked, ratio))

    for heads, specs in DECODE.items():
        for spec, asked in specs.items():
            name = f"decode attention, 32/{heads} heads, {spec} against fp16"
            add(name, "least", asked, partial(decode_ratio, out, heads, spec))
    add("bandwidth on codes, nuq4, of a copy's", "least", 0.7, partial(bandwidth_share, out))
    for spec in ("nuq4-1%", "nuq3-1%"):
        add(
            f"prefill attention over 32K, {spec} against torch flash",
            "least",
            0.9,
            partial(torch_ratio, out, "prefill", 8, spec, "FLASH_ATTENTION"),
        )
    no_encoder = "cuda_timing does not time encoding"
    add("encode, of copy bandwidth", "least", 0.6, partial(not_timed, no_encoder))
    add("encode, of prefill", "most", 0.02, partial(not_timed, no_encoder))
    for spec in ("nuq4-1%", "nuq3-1%"):
        name = f"prefill 16K of the model, {spec} against fp16"
        add(name, "least", 0.95, partial(prefill_ratio, out, spec))
    in_budget = "in the cache budget, nuq3-1% against fp16"
    for what, bound, asked, field in (
        ("requests/s", "least", 2.5, "requests_per_s"),
        ("energy of a generated token, its prompt's share included,", "most", 0.6, "joules"),
        ("energy of a generated token, decoding alone,", "most", 0.6, "decode_joules"),
    ):
        add(f"{what} {in_budget}", bound, asked, partial(budget_ratio, out, field))
    add("largest batches, of the byte ratio", "least", 0.95, partial(batch_share, out))
    return targets


def judge(out: pathlib.Path, is_small: bool) -> list[Row]:
    """All targets from the results in `out`."""
    judged = []
    for name, bound, asked, ratio in list_targets(out):
        row: Row = {"target": name, bound: asked, "measured": None, "met": None}
        try:
            row["measured"] = measured = ratio()
            if is_small:
                row["why"] = "--small: not the target's shapes"
            else:
                row["met"] = measured >= asked if bound == "least" else measured <= asked
        except (MissingError, ZeroDivisionError, KeyError) as missing:
            row["why"] = str(missing)
        judged.append(row)
    return judged


def beside_torch(out: pathlib.Path) -> list[Row]:
    """Each timed shape and spec beside torch's backends: their time over ours."""
    rows = []
    try:
        timed = read(out / "timing.json")["results"]
    except (MissingError, KeyError):
        return []
    for ours in timed:
        row = {name: ours.get(name) for name in ("what", "num_kv_heads", "spec", "ms_median")}
        for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
            try:
                ratio = torch_ratio(out, row["what"], row["num_kv_heads"], row["spec"], backend)
                row[backend.lower()] = ratio
            except (MissingError, ZeroDivisionError, KeyError) as missing:
                row[backend.lower()] = None
                row["why"] = str(missing)
        rows.append(row)
    return rows
