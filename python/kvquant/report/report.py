"""Writes the report: figures, tables, a page with both that needs no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from kvquant.report import quality_figures, speed_figures
from kvquant.report.load import Results
from kvquant.report.pareto import pareto_rows
from kvquant.report.style import save
from kvquant.report.tables import tables_of, to_html, to_latex, to_markdown

# File name -> caption, how it is drawn, what it needs.
FIGURES: dict[str, tuple[str, Callable[[Results], Figure | None], str]] = {
    "throughput": (
        "Throughput against batch",
        speed_figures.throughput,
        "results of sweep",
    ),
    "memory": (
        "Memory against batch; crosses: out of memory",
        speed_figures.memory,
        "results of sweep",
    ),
    "speed_up": (
        "Speed against fp16 of the same prompt and batch",
        speed_figures.speed_up,
        "results of sweep for fp16 and others",
    ),
    "energy": (
        "Energy per token of the whole machine",
        speed_figures.energy,
        "results of sweep with energy",
    ),
    "kl_against_bits": (
        "Divergence from fp16 against true bits",
        quality_figures.kl_against_bits,
        "perplexity --json",
    ),
    "pareto": ("Pareto front", quality_figures.pareto, "perplexity --json"),
    "ablations": (
        "One parameter at a time",
        quality_figures.ablations,
        "three specs that differ in one parameter alone",
    ),
    "layers": (
        "What every layer loses by itself, all else fp16",
        quality_figures.layers,
        "allocate --json",
    ),
    "needle": ("Recall of a needle", quality_figures.needles, "eval --tasks needle --json"),
}

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; font-size: 0.85em; }}
td, th {{ border-bottom: 1px solid #ccc; padding: 0.2em 0.6em; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; }}
figcaption {{ font-style: italic; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{about}</p>
{body}
</body>
</html>
"""


def _about(results: Results) -> str:
    machine, config = results.machine, results.config
    parts = [
        str(machine.get("cpu", "")),
        f"{config.get('threads', '?')} threads",
        f"kvquant {machine.get('version', '?')} ({machine.get('commit', '?')})",
        str(machine.get("compiler", "")),
        f"seed {config.get('seed', '?')}",
    ]
    return ", ".join(part for part in parts if part)


def _front(results: Results) -> list[str]:
    rows = pareto_rows(results)
    if not rows:
        return []
    names = ", ".join(row.spec for row in rows if not row.is_dominated)
    beaten = ", ".join(row.spec for row in rows if row.is_dominated)
    return [f"Pareto front: {names}" + (f"; dominated: {beaten}" if beaten else "")]


def _energy(results: Results) -> list[str]:
    """Why there is none, where there is none."""
    notes = sorted({s.energy_note for s in results.measured if s.energy_note})
    is_known = any(s.decode_joules_per_token is not None for s in results.measured)
    return [] if is_known or not notes else [f"Energy: not measured ({'; '.join(notes)})"]


def write_report(results: Results, folder: Path) -> str:
    """Figures as NAME.png and NAME.pdf, tables.md, tables.tex and index.html; says what it did."""
    folder.mkdir(parents=True, exist_ok=True)
    body: list[str] = []
    drawn: list[str] = []
    missing: list[str] = []
    for name, (caption, draw, needs) in FIGURES.items():
        figure = draw(results)
        if figure is None:
            missing.append(f"{name} (needs {needs})")
            for suffix in ("png", "pdf"):  # of an earlier report
                (folder / f"{name}.{suffix}").unlink(missing_ok=True)
            continue
        save(figure, folder, name)
        drawn.append(name)
        image = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
        body.append(
            f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{image}">'
            f"<figcaption>{html.escape(caption)}.</figcaption></figure>"
        )
    tables = tables_of(results)
    front = _front(results) + _energy(results)
    body += [f"<p>{html.escape(line)}.</p>" for line in front]
    body += [to_html(table) for table in tables]
    if missing:
        body.append(f"<p>Not drawn: {html.escape('; '.join(missing))}.</p>")
    title = f"{results.model}: compressed KV caches"
    page = _PAGE.format(
        title=html.escape(title), about=html.escape(_about(results)), body="\n".join(body)
    )
    about = f"# {title}\n\n{_about(results)}\n\n"
    markdown = about + "\n".join(to_markdown(table) for table in tables)
    (folder / "tables.md").write_text(markdown, encoding="utf-8")
    (folder / "tables.tex").write_text("\n".join(map(to_latex, tables)), encoding="utf-8")
    (folder / "index.html").write_text(page, encoding="utf-8")
    lines = [f"{folder / 'index.html'}: {', '.join(drawn) or 'tables alone'}", *front]
    if missing:
        lines.append(f"not drawn: {'; '.join(missing)}")
    return "\n".join(lines)
