"""Tables in Markdown, LaTeX and HTML from the same rows."""

from __future__ import annotations

import html
from dataclasses import dataclass

from kvquant.report.load import BASELINE, Results
from kvquant.report.pareto import pareto_rows
from kvquant.report.speed_figures import MIB


@dataclass(frozen=True)
class Table:
    name: str
    caption: str
    header: list[str]
    rows: list[list[str]]


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def speed_table(results: Results) -> Table | None:
    if all(s.is_largest_batch for s in results.speeds):
        return None
    of = {(s.spec, s.prompt, s.batch): s for s in results.measured}
    is_assumed = any(s.is_energy_assumed for s in results.measured)
    rows = []
    for s in results.speeds:
        if s.is_largest_batch:
            continue
        base = of.get((BASELINE, s.prompt, s.batch))
        ratio = None
        if base and s.decode_tokens_per_s and base.decode_tokens_per_s:
            ratio = s.decode_tokens_per_s / base.decode_tokens_per_s
        mib = None if s.cache_bytes is None else s.cache_bytes / MIB
        rows.append(
            [
                s.spec,
                str(s.prompt),
                str(s.batch),
                _text(s.prefill_tokens_per_s, ".1f"),
                _text(s.decode_tokens_per_s, ".1f"),
                _text(ratio, ".2f"),
                _text(s.time_to_first_token_s, ".3f"),
                _text(s.requests_per_s, ".3g"),
                _text(mib, ".1f"),
                _text(s.decode_joules_per_token, ".3g"),
                "" if s.is_ok else "out of memory",
            ]
        )
    is_known = any(s.decode_joules_per_token is not None for s in results.measured)
    note = " (not measured)" if not is_known else " (power assumed)" if is_assumed else ""
    header = ["cache", "prompt", "batch", "prefill tokens/s", "decode tokens/s", "times fp16"]
    header += ["first token (s)", "requests/s", "cache (MiB)", "J/token" + note, ""]
    return Table("speed", f"Speed and memory of {results.model}", header, rows)


def largest_table(results: Results) -> Table | None:
    """The largest batches of a budget, and how many requests a second they answer."""
    largest = [s for s in results.speeds if s.is_largest_batch]
    base = {(s.prompt, s.gen, s.memory_budget): s for s in largest if s.spec == BASELINE}

    def times(value: float | None, of: float | None) -> str:
        return f"{value / of:.2f}" if value and of else "-"

    rows = []
    for s in largest:
        b = base.get((s.prompt, s.gen, s.memory_budget))
        rows.append(
            [
                s.spec,
                str(s.prompt),
                str(s.gen),
                "-" if s.memory_budget is None else f"{s.memory_budget / MIB:.0f}",
                str(s.batch) if s.is_ok else "0 (none fits)",
                times(s.batch, b.batch if b else None),
                _text(s.requests_per_s, ".3g"),
                times(s.requests_per_s, b.requests_per_s if b else None),
                _text(s.decode_tokens_per_s, ".1f"),
                "-" if s.cache_bytes is None else f"{s.cache_bytes / MIB:.1f}",
            ]
        )
    header = ["cache", "prompt", "generated", "budget (MiB)", "largest batch", "times fp16"]
    header += ["requests/s", "times fp16", "decode tokens/s", "cache (MiB)"]
    return Table("largest", "Largest batch of a memory budget", header, rows) if rows else None


def quality_table(results: Results) -> Table | None:
    rows = [
        [
            q.spec,
            "" if q.spec == BASELINE else q.calibration,
            _text(q.true_bits, ".2f"),
            _text(q.perplexity, ".3f"),
            _text(q.kl_mean, ".4f"),
            "-" if q.top1_agreement is None else f"{100 * q.top1_agreement:.1f}%",
        ]
        for q in results.qualities
    ]
    if not rows:
        return None
    header = ["cache", "calibration", "true bits", "perplexity", "KL (nats)", "top-1 agreement"]
    caption = f"Quality of {results.model} on {results.qualities[0].text}"
    return Table("quality", caption, header, rows)


def pareto_table(results: Results) -> Table | None:
    rows = [
        [
            row.spec,
            f"{row.kl_mean:.4f}",
            f"{row.bytes / MIB:.1f} MiB" if row.bytes > MIB else f"{row.bytes:.2f} bits",
            _text(row.tokens_per_s, ".1f"),
            _text(row.joules_per_token, ".3g"),
            "dominated" if row.is_dominated else "front",
        ]
        for row in pareto_rows(results)
    ]
    header = ["cache", "KL (nats)", "size", "decode tokens/s", "J/token", ""]
    return (
        Table("pareto", "Pareto front of KL, bytes, speed and energy", header, rows)
        if rows
        else None
    )


def tables_of(results: Results) -> list[Table]:
    makers = (speed_table, largest_table, quality_table, pareto_table)
    made = [make(results) for make in makers]
    return [table for table in made if table is not None]


def to_markdown(table: Table) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join("---" if i == 0 else "---:" for i in range(len(table.header))) + "|"
    body = [line(table.header), rule, *map(line, table.rows)]
    return f"## {table.caption}\n\n" + "\n".join(body) + "\n"


_LATEX = {c: "\\" + c for c in "%&_#${}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def to_latex(table: Table) -> str:
    """A tabular in a table; needs no package."""

    def line(cells: list[str]) -> str:
        return " & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in cells) + r" \\"

    columns = "l" + "r" * (len(table.header) - 1)
    caption = "".join(_LATEX.get(c, c) for c in table.caption)
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{caption}}}\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            line(table.header),
            r"\hline",
            *map(line, table.rows),
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def to_html(table: Table) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    rows = "\n".join(line(row, "td") for row in table.rows)
    head = line(table.header, "th")
    return f"<h2>{html.escape(table.caption)}</h2>\n<table>\n{head}\n{rows}\n</table>\n"
