from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from kvquant.report import ParetoRow, load_results, pareto_front, write_report
from kvquant.report.__main__ import main
from kvquant.report.pareto import pareto_rows
from kvquant.report.quality_figures import ablation_groups, parameters_of
from kvquant.report.report import FIGURES
from kvquant.report.tables import (
    Table,
    largest_table,
    quality_table,
    speed_table,
    to_html,
    to_latex,
    to_markdown,
)

SPECS = {"fp16": 1.0, "nuq4-1%": 1.2, "nuq3-1%": 1.3, "nuq2-1%": 1.45}


def document(command: str, results: list[dict[str, Any]], model: str = "tiny") -> dict[str, Any]:
    machine = {"cpu": "a CPU", "version": "0.1.0", "commit": "abc", "compiler": "g++ 12"}
    return {
        "schema": 1,
        "command": command,
        "model": {"name": model},
        "config": {"threads": 2, "seed": 42},
        "machine": machine,
        "results": results,
    }


def speed(spec: str, prompt: int, batch: int, **more: Any) -> dict[str, Any]:
    factor = SPECS.get(spec, 1.1)
    result = {
        "name": f"len{prompt}_batch{batch}_{spec}",
        "spec": spec,
        "spec_resolved": spec,
        "n_prompt": prompt,
        "batch": batch,
        "n_gen": 32,
        "status": "ok",
        "prefill_tokens_per_s": 1000.0 / factor,
        "decode_tokens_per_s": 40 * batch**0.7 * factor ** (prompt / 2048),
        "time_to_first_token_s": prompt * batch / 1000,
        "requests_per_s": 0.5 * factor,
        "cache_bytes": int(prompt * batch * 23040 / factor**3),
        "peak_cache_bytes": int(prompt * batch * 24000 / factor**3),
        "energy": "measured",
        "decode_joules_per_token": 2 / factor / batch**0.5,
        "prefill_joules_per_token": 0.1 * factor,
    }
    return result | more


def quality(spec: str, kl: float, bits: float) -> dict[str, Any]:
    return {
        "spec": spec,
        "spec_resolved": spec,
        "mode": "strict",
        "perplexity": 12 + kl,
        "kl_mean": kl,
        "top1_agreement": 1 - kl,
        "true_bits": bits,
    }


def calibrated(name: str, results: list[dict[str, Any]], text: str = "a.txt") -> dict[str, Any]:
    """Results of perplexity with the calibration of this name, as sweep names its file."""
    out = document("perplexity", results)
    out["config"]["calibration"] = {"path": f"x/{name}-0123abcd.safetensors", "fingerprint": name}
    out["config"] |= {"file": text, "window": 512, "stride": 512, "max_windows": 4}
    return out


def write(folder: Path, name: str, content: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def make_sweep(folder: Path) -> None:
    for spec in SPECS:
        for prompt in (512, 4096):
            for batch in (1, 4, 16):
                result = speed(spec, prompt, batch)
                if spec == "fp16" and (prompt, batch) == (4096, 16):
                    keys = ("name", "spec", "spec_resolved", "n_prompt", "batch", "n_gen")
                    result = {key: result[key] for key in keys}
                    result |= {"status": "out_of_memory", "reason": "caches are too large"}
                write(folder, f"{result['name']}-0.json", document("sweep", [result]))
    for spec, batch in (("fp16", 8), ("nuq3-1%", 23)):
        largest = document("sweep", [speed(spec, 4096, batch, is_largest_batch=True)])
        largest["config"]["memory_budget"] = 2 << 30
        write(folder, f"largest-{batch}.json", largest)


def make_quality(folder: Path) -> None:
    rows = [("nuq4-1%", 0.004, 4.6), ("nuq3-1%", 0.02, 3.6), ("nuq2-1%", 0.12, 2.6)]
    write(folder, "ppl.json", document("perplexity", [quality(*row) for row in rows]))


def make_folder(folder: Path) -> Path:
    """Results of everything that is drawn."""
    make_sweep(folder)
    make_quality(folder)
    more = [("nuq3", 0.06, 3.2), ("nuq3-0.5%", 0.03, 3.4), ("nuq3-2%", 0.015, 4.0)]
    windows = [("nuq3-1%,sink=0", 0.05, 3.6), ("nuq3-1%,sink=4", 0.03, 3.6)]
    windows.append(("nuq3-1%,sink=16", 0.025, 3.61))
    rows = [quality(*row) for row in more + windows]
    write(folder, "ablation.json", document("perplexity", rows))
    cells = [
        {"context_length": n, "depth": d, "count": 5, "exact_match": 1 - n * d / 20000}
        for n in (1024, 4096, 8000)
        for d in (0.1, 0.5, 0.9)
    ]
    needles = [
        {"spec": s, "task": "needle", "metric": "exact_match", "cells": cells} for s in SPECS
    ]
    write(folder, "needle.json", document("eval", needles))
    layers = [
        {"layer": n, "side": side, "codec": codec, "kl_mean": 0.001 * (n + 1), "bytes": 1}
        for n in range(6)
        for side in "kv"
        for codec in ("nuq2", "nuq4")
    ]
    write(folder, "layers.json", document("allocate", []) | {"sensitivity": layers})
    return folder


def test_everything_is_drawn_and_the_page_needs_no_other_file(tmp_path: Path) -> None:
    results = load_results(make_folder(tmp_path))
    summary = write_report(results, tmp_path / "report")
    for name in FIGURES:
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "report" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    page = (tmp_path / "report/index.html").read_text()
    assert page.count("data:image/png;base64,") == len(FIGURES)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "Pareto front: " in summary
    assert "g++ 12" in page
    assert "out of memory" in (tmp_path / "report/tables.md").read_text()
    assert "nuq3-1\\%" in (tmp_path / "report/tables.tex").read_text()


def test_the_same_results_give_the_same_files(tmp_path: Path) -> None:
    make_quality(tmp_path)
    for folder in ("a", "b"):
        write_report(load_results(tmp_path), tmp_path / folder)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_what_was_not_measured_is_not_drawn_and_said(tmp_path: Path) -> None:
    result = speed("fp16", 512, 1, energy="not measured", decode_joules_per_token=None)
    result["prefill_joules_per_token"] = None
    write(tmp_path, "a.json", document("sweep", [result]))
    summary = write_report(load_results(tmp_path), tmp_path / "report")
    assert "energy (needs results of sweep with energy)" in summary
    assert not (tmp_path / "report/energy.png").exists()
    assert (tmp_path / "report/throughput.png").exists()


def test_energy_of_an_assumed_power_is_called_so(tmp_path: Path) -> None:
    result = speed("fp16", 512, 1, energy="assumed")
    write(tmp_path, "a.json", document("sweep", [result]))
    results = load_results(tmp_path)
    figure = FIGURES["energy"][1](results)
    assert figure is not None
    assert "ASSUMED" in figure.axes[0].get_ylabel()
    write_report(results, tmp_path / "report")
    assert "power assumed" in (tmp_path / "report/tables.md").read_text()


def test_why_there_is_no_energy_is_said(tmp_path: Path) -> None:
    result = speed("fp16", 512, 1, energy="not measured", energy_note="rapl: none")
    result |= {"decode_joules_per_token": None, "prefill_joules_per_token": None}
    write(tmp_path, "a.json", document("sweep", [result]))
    summary = write_report(load_results(tmp_path), tmp_path / "report")
    assert "Energy: not measured (rapl: none)" in summary
    assert "Energy: not measured (rapl: none)" in (tmp_path / "report/index.html").read_text()
    assert "J/token (not measured)" in (tmp_path / "report/tables.md").read_text()


def test_the_largest_batches_of_a_budget_have_a_table(tmp_path: Path) -> None:
    make_sweep(tmp_path)
    results = load_results(tmp_path)
    table = largest_table(results)
    assert table is not None
    assert [row[:6] for row in table.rows] == [
        ["fp16", "4096", "32", "2048", "8", "1.00"],
        ["nuq3-1%", "4096", "32", "2048", "23", "2.88"],
    ]
    assert speed_table(results) is not None
    assert not any("23" in row for row in speed_table(results).rows)  # type: ignore[union-attr]


def test_a_budget_that_no_sequence_fits_is_said(tmp_path: Path) -> None:
    none = speed("fp16", 512, 1, status="out_of_memory") | {"batch": 0}
    write(tmp_path, "a.json", document("sweep", [none]))
    table = largest_table(load_results(tmp_path))
    assert table is not None
    assert "0 (none fits)" in table.rows[0]
    assert speed_table(load_results(tmp_path)) is None


def test_calibrations_of_the_same_spec_are_told_apart(tmp_path: Path) -> None:
    for index, name in enumerate(("docs", "code", "tables")):
        rows = [quality("fp16", 0, 16), quality("nuq3", 0.02 * (index + 1), 3.6)]
        write(tmp_path, f"{name}.json", calibrated(name, rows))
    results = load_results(tmp_path)
    assert [(q.spec, q.calibration) for q in results.qualities if q.spec != "fp16"] == [
        ("nuq3", "code"),
        ("nuq3", "docs"),
        ("nuq3", "tables"),
    ]
    assert sum(q.spec == "fp16" for q in results.qualities) == 1
    assert {row.spec for row in pareto_rows(results)} >= {"nuq3 (docs)", "nuq3 (code)"}
    figure = FIGURES["ablations"][1](results)
    assert figure is not None
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [
        "code",
        "docs",
        "tables",
    ]
    quality_rows = quality_table(results)
    assert quality_rows is not None
    assert ["nuq3", "code"] in [row[:2] for row in quality_rows.rows]


def test_other_calibrations_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, "a.json", calibrated("docs", [quality("nuq3", 0.02, 3.6)]))
    other = calibrated("docs", [quality("nuq3", 0.03, 3.6)])
    other["config"]["calibration"]["fingerprint"] = "f00d"
    write(tmp_path, "b.json", other)
    write(tmp_path, "c.json", calibrated("docs", [quality("nuq3", 0.02, 3.6)]))
    names = [q.calibration for q in load_results(tmp_path).qualities]
    assert names == ["docs", "docs f00d"]


def test_quality_on_other_texts_is_not_compared(tmp_path: Path) -> None:
    rows = [quality("nuq3", 0.02, 3.6), quality("nuq4", 0.01, 4.6)]
    write(tmp_path, "a.json", calibrated("docs", rows))
    write(tmp_path, "b.json", calibrated("docs", [quality("nuq2", 0.1, 2.6)], text="b.txt"))
    results = load_results(tmp_path)
    assert [q.spec for q in results.qualities] == ["nuq3", "nuq4"]
    assert "1 results of perplexity on b.txt in windows of 512" in results.passed_over[0]


def test_what_cannot_be_read_is_named_and_the_rest_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_quality(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    write(tmp_path, "later.json", document("sweep", []) | {"schema": 2})
    write(tmp_path, "strange.json", document("sweep", [{"spec": "fp16"}]))
    write(tmp_path, "other.json", {"command": "bench"})
    write(tmp_path, "list.json", [1])
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr()
    assert "broken.json" in out.err
    assert "later.json: schema 2, this version reads 1" in out.err
    assert out.err.count("warning") == 3
    assert "kl_against_bits" in out.out


def test_nothing_to_report_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([str(tmp_path)]) == 2
    write(tmp_path, "a.json", document("sweep", [speed("fp16", 8, 1)]))
    write(tmp_path, "b.json", document("sweep", [speed("fp16", 8, 1)], model="other"))
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path), "--model", "third"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert "results of other, tiny: name one with --model" in errors[2]
    assert main([str(tmp_path), "--model", "other"]) == 0


def test_dominated_is_what_another_beats_in_everything() -> None:
    rows = [
        ParetoRow("a", 0.1, 100, 10),
        ParetoRow("b", 0.1, 100, 9),  # slower than a, else the same
        ParetoRow("c", 0.2, 90, 5),
        ParetoRow("d", 0.3, 95, 20),  # the fastest
        ParetoRow("a again", 0.1, 100, 10),
    ]
    front = {row.spec: row.is_dominated for row in pareto_front(rows)}
    assert front == {"a": False, "b": True, "c": False, "d": False, "a again": False}


def test_ablations_compare_specs_that_differ_in_one_parameter() -> None:
    assert parameters_of("nuq3-0.5%,sink=4") == {
        "bits": 3,
        "outliers (%)": 0.5,
        "sink (tokens)": 4,
        "rest": "",
    }
    assert parameters_of("fp16") is None
    groups = ablation_groups(["nuq4-1%", "nuq3-1%", "nuq2-1%", "nuq3", "nuq3-2%", "fp16"])
    assert groups["bits"] == [(2, "nuq2-1%"), (3, "nuq3-1%"), (4, "nuq4-1%")]
    assert groups["outliers (%)"] == [(0, "nuq3"), (1, "nuq3-1%"), (2, "nuq3-2%")]
    assert ablation_groups(["nuq3,block=64", "nuq3,block=128"]) == {}


def test_tables_escape_what_their_format_reads() -> None:
    table = Table("t", "a & b", ["x_y", "<z>"], [["50%", "a|b"]])
    assert "a\\|b" in to_markdown(table)
    assert "a \\& b" in to_latex(table)
    assert "x\\_y" in to_latex(table)
    assert "&lt;z&gt;" in to_html(table)


def test_the_program_runs_the_report(tmp_path: Path) -> None:
    import subprocess
    import sys

    make_quality(tmp_path)
    command = [sys.executable, "-m", "kvquant", "report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "index.html" in done.stdout
    wrong = subprocess.run([*command, "--frobnicate"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
