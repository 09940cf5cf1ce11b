"""Figures of what compression costs in quality: divergence against bits, Pareto front, recall."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kvquant.report.load import NeedleCell, Results
from kvquant.report.pareto import common_speeds, pareto_rows
from kvquant.report.speed_figures import MIB
from kvquant.report.style import (
    COLOURS,
    HEAT_MAP,
    from_zero,
    look_of,
    name_points,
    panels,
    shared_legend,
)

KL = "KL from fp16 (nats, mean)"
MOST_NAMES = 10  # of points in a panel


def kl_against_bits(results: Results) -> Figure | None:
    """A point per spec, named; a colour per calibration."""
    known = [
        q for q in results.qualities if q.true_bits is not None and q.kl_mean and q.kl_mean > 0
    ]
    if not known:
        return None
    figure, axes = panels(1, 1)
    figure.set_size_inches(5.2, 3.6)
    panel = axes[0][0]
    for index, calibration in enumerate(results.calibrations):
        of = [q for q in known if q.calibration == calibration]
        panel.scatter(
            [q.true_bits or 0 for q in of],
            [q.kl_mean or 0 for q in of],
            label=calibration,
            alpha=0.8,
            zorder=3,
            **look_of(index + 1),
        )
    panel.set_yscale("log")
    panel.margins(x=0.18, y=0.12)
    panel.set_xlabel("true bits per value (all that is allocated)")
    panel.set_ylabel(KL)
    if len(results.calibrations) > 1:
        shared_legend(figure)
    named = {q.spec: q for q in reversed(known)}  # once each
    name_points(panel, [(q.true_bits or 0, q.kl_mean or 0, q.spec) for q in named.values()])
    return figure


def pareto(results: Results) -> Figure | None:
    """Divergence against bytes; filled: not dominated in any of the figures; area: tokens/s."""
    rows = [row for row in pareto_rows(results) if row.kl_mean > 0]
    if not rows:
        return None
    has_speed = all(row.tokens_per_s is not None for row in rows)
    fastest = max((row.tokens_per_s or 0 for row in rows), default=0)
    unit = MIB if has_speed else 1
    figure, axes = panels(1, 1)
    figure.set_size_inches(5.6, 3.8)
    panel = axes[0][0]
    for row in rows:
        size = 30 + 120 * (row.tokens_per_s or 0) / fastest if has_speed and fastest else 40
        colour = COLOURS[6] if row.is_dominated else COLOURS[2]
        panel.scatter(
            [row.bytes / unit],
            [row.kl_mean],
            s=size,
            facecolor="none" if row.is_dominated else colour,
            edgecolor=colour,
            zorder=3,
        )
    front = [row for row in rows if not row.is_dominated]
    panel.plot(
        [row.bytes / unit for row in front],
        [row.kl_mean for row in front],
        color=COLOURS[2],
        linewidth=0.8,
        alpha=0.5,
    )
    panel.set_yscale("log")
    panel.margins(x=0.18, y=0.15)
    panel.set_xlabel("cache (MiB)" if has_speed else "true bits per value")
    panel.set_ylabel(KL)
    note = "filled: no other spec is as good in everything"
    panel.set_title(note + (", area: tokens/s" if has_speed else ""), fontsize=8)
    named = rows if len(rows) <= MOST_NAMES else front  # the table has them all
    name_points(panel, [(row.bytes / unit, row.kl_mean, row.spec) for row in named])
    return figure


_ITEM = re.compile(r"^(?:k=)?nuq([234])(?:-([\d.]+)%)?$")


def parameters_of(spec: str) -> dict[str, float | str] | None:
    """Bits, outliers, block, sink and recent of a nuq spec; None for others."""
    out: dict[str, float | str] = {"outliers (%)": 0.0}
    rest = []
    for item in spec.split(","):
        name, _, value = item.partition("=")
        if match := _ITEM.match(item):
            out["bits"] = float(match[1])
            out["outliers (%)"] = float(match[2] or 0)
        elif name in ("block", "sink", "recent") and value.isdigit():
            out[f"{name} (tokens)"] = float(value)
        else:
            rest.append(item)
    out["rest"] = ",".join(rest)
    return out if "bits" in out else None


def ablation_groups(specs: list[str]) -> dict[str, list[tuple[float, str]]]:
    """Parameter -> (value, spec), of the largest set of specs that differ in it alone."""
    known = {spec: found for spec in specs if (found := parameters_of(spec)) is not None}
    best: dict[str, list[tuple[float, str]]] = {}
    names = sorted({name for found in known.values() for name in found} - {"rest"})
    for name in names:
        groups: dict[tuple[object, ...], list[tuple[float, str]]] = defaultdict(list)
        for spec, found in known.items():
            others = tuple(sorted((k, v) for k, v in found.items() if k != name))
            if name in found:
                groups[others].append((float(found[name]), spec))
        group = max(groups.values(), key=len, default=[])
        if len({value for value, _ in group}) >= 3:
            best[name] = sorted(group)
    return best


@dataclass(frozen=True)
class _Measure:
    label: str
    by_spec: dict[str, float]


def _measures(results: Results) -> list[_Measure]:
    """Divergence with the calibration of most results, and speed at the shape of most."""
    main = results.calibrations[:1]
    kl = {
        q.spec: q.kl_mean
        for q in results.qualities
        if q.kl_mean is not None and q.calibration in main
    }
    speeds = common_speeds(results.measured)
    rate = {s.spec: s.decode_tokens_per_s for s in speeds.values() if s.decode_tokens_per_s}
    shape = next(iter(speeds.values()), None)
    at = f"\nprompt {shape.prompt}, batch {shape.batch}" if shape else ""
    of = f"\ncalibration: {main[0]}" if len(results.calibrations) > 1 else ""
    made = [_Measure(KL + of, kl), _Measure("decoding (tokens/s)" + at, rate)]
    return [measure for measure in made if measure.by_spec]


def _draw_calibrations(panel: Axes, results: Results) -> None:
    """Divergence against the calibration, a line per spec that has them all."""
    names = sorted(results.calibrations)
    kl = {(q.spec, q.calibration): q.kl_mean for q in results.qualities}
    specs = dict.fromkeys(q.spec for q in results.qualities)
    whole = [s for s in specs if all(kl.get((s, name)) for name in names)]
    for index, spec in enumerate(whole):
        values = [kl[spec, name] or 0 for name in names]
        panel.plot(range(len(names)), values, linestyle=":", label=spec, **look_of(index + 1))
    panel.set_yscale("log")
    panel.set_xticks(range(len(names)), names, rotation=20, ha="right")
    panel.set_xlabel("calibration")
    panel.set_ylabel(KL)
    panel.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)


def _draw_parameter(panel: Axes, name: str, points: list[tuple[float, float]], row: int) -> None:
    panel.plot(*zip(*points, strict=True), **look_of(1 + row))
    from_zero(panel)
    if name.startswith("block"):
        panel.set_xscale("log", base=2)
    panel.set_xticks([x for x, _ in points], [f"{x:g}" for x, _ in points])
    panel.minorticks_off()
    panel.set_xlabel(name)


def ablations(results: Results) -> Figure | None:
    """A column per parameter that at least three specs differ in alone, one for calibrations."""
    measures = _measures(results)
    specs = dict.fromkeys(spec for measure in measures for spec in measure.by_spec)
    groups = ablation_groups(list(specs))
    has_calibrations = len(results.calibrations) >= 3
    if not measures or not (groups or has_calibrations):
        return None
    rows = measures if groups else measures[:1]
    figure, axes = panels(len(rows), len(groups) + has_calibrations)
    for column, (name, group) in enumerate(groups.items()):
        for row, measure in enumerate(rows):
            panel = axes[row][column]
            points = [(x, measure.by_spec[spec]) for x, spec in group if spec in measure.by_spec]
            if len(points) < 2:
                panel.set_visible(False)
                continue
            _draw_parameter(panel, name, points, row)
            panel.set_ylabel(measure.label)
            panel.set_title(f"{group[0][1]} …\n{group[-1][1]}", fontsize=7)
    if has_calibrations:
        _draw_calibrations(axes[0][-1], results)
        for panels_of_row in axes[1:]:
            panels_of_row[-1].set_visible(False)
    return figure


def layers(results: Results) -> Figure | None:
    """Divergence of keys and values of each layer alone, a line per codec."""
    if not results.layers:
        return None
    sides = [side for side in ("k", "v") if any(loss.side == side for loss in results.layers)]
    codecs = list(dict.fromkeys(loss.codec for loss in results.layers))
    figure, axes = panels(1, len(sides))
    figure.set_size_inches(4.6 * len(sides), 3.2)
    for panel, side in zip(axes[0], sides, strict=True):
        for index, codec in enumerate(codecs):
            points = sorted(
                (loss.layer, loss.kl_mean)
                for loss in results.layers
                if loss.side == side and loss.codec == codec
            )
            if points:
                panel.plot(
                    *zip(*points, strict=True), label=codec, markersize=3.5, **look_of(index + 1)
                )
        panel.set_yscale("log")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel("layer")
        panel.set_ylabel(KL)
        panel.set_title("keys" if side == "k" else "values")
        panel.legend(fontsize=7)
    return figure


def needles(results: Results) -> Figure | None:
    """Recall by context length and depth, a panel per spec."""
    by_spec: dict[str, list[NeedleCell]] = defaultdict(list)
    for cell in results.needles:
        by_spec[cell.spec].append(cell)
    if not by_spec:
        return None
    columns = min(len(by_spec), 3)
    rows = -(-len(by_spec) // columns)
    figure, axes = panels(rows, columns)
    flat = [panel for row in axes for panel in row]
    image = None
    for panel, (spec, cells) in zip(flat, by_spec.items(), strict=False):
        lengths = sorted({cell.length for cell in cells})
        depths = sorted({cell.depth for cell in cells})
        scores = {(cell.depth, cell.length): cell.score for cell in cells}
        grid = [[scores.get((d, n), float("nan")) for n in lengths] for d in depths]
        image = panel.imshow(grid, cmap=HEAT_MAP, vmin=0, vmax=1, aspect="auto")
        for (depth, length), score in scores.items():
            panel.text(
                lengths.index(length),
                depths.index(depth),
                f"{100 * score:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color="black" if score > 0.5 else "white",
            )
        panel.grid(visible=False)
        panel.set_xticks(range(len(lengths)), [str(n) for n in lengths])
        panel.set_yticks(range(len(depths)), [f"{100 * d:g}" for d in depths])
        panel.set_xlabel("context (tokens)")
        panel.set_ylabel("depth of the needle (%)")
        panel.set_title(spec)
    for panel in flat[len(by_spec) :]:
        panel.set_visible(False)
    if image is not None:
        figure.colorbar(
            image, ax=[panel for row in axes for panel in row], label="share found (numbers in %)"
        )
    return figure
