"""How figures look: colours that the colour-blind tell apart (Okabe and Ito), units, 300 dpi."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.use("Agg")

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PANEL = (3.4, 2.7)  # inches
HEAT_MAP = "cividis"

STYLE: Any = {
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "kvquant",
}


def panels(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    """A figure of equal panels."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [list(row) for row in axes]


def look_of(index: int) -> dict[str, Any]:
    """Colour and marker of the spec with this index."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
    }


def log2_axis(axes: Axes, values: list[int]) -> None:
    """A logarithmic axis of x with a tick at every value, as a plain number."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()


def from_zero(axes: Axes) -> None:
    """An axis of y that begins at 0 and leaves room above."""
    axes.set_ylim(0, 1.06 * axes.get_ylim()[1])


def name_points(axes: Axes, points: list[tuple[float, float, str]]) -> None:
    """Names beside points, where they meet neither names nor points as far as there is room."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # settles where the axes lie
    scale = 72 / figure.dpi
    size = 7.0
    placed = [axes.transData.transform((x, y)) * scale for x, y, _ in points]
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in placed]
    for (px, py), (x, y, name) in zip(placed, points, strict=True):
        width, height = 0.6 * size * len(name), 1.15 * size
        boxes = [
            (px + dx - (width if dx < 0 else 0), py + dy, dx, dy)
            for dy in (4, -10, 13, -19, 22, -28)
            for dx in (5, -5)
        ]

        def meets(box: tuple[float, float, float, float], w: float, h: float) -> bool:
            left, low = box[0], box[1]
            return any(
                left < right and a < left + w and low < high and b < low + h
                for a, b, right, high in taken
            )

        left, low, dx, dy = next((b for b in boxes if not meets(b, width, height)), boxes[0])
        taken.append((left, low, left + width, low + height))
        axes.annotate(
            name,
            (x, y),
            xytext=(dx, dy),
            textcoords="offset points",
            fontsize=size,
            ha="right" if dx < 0 else "left",
        )


def shared_legend(figure: Figure) -> None:
    """Below: every label of the panels once."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    size = 8
    widest = (0.6 * max(map(len, named), default=0) + 5) * size / 72  # inches, with its line
    columns = max(1, min(len(named), 4, int(figure.get_figwidth() / widest)))
    figure.legend(
        list(named.values()),
        list(named),
        loc="outside lower center",
        ncols=columns,
        fontsize=size,
        frameon=False,
    )


def save(figure: Figure, folder: Path, name: str) -> None:
    """As PNG (300 dpi) and PDF, without dates, so that the same results give the same files."""
    with mpl.rc_context(STYLE):
        figure.savefig(folder / f"{name}.png", dpi=300, metadata={"Software": None})
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
