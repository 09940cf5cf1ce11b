"""Figures of a sweep: throughput, memory, speed-up, energy."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FormatStrFormatter, LogLocator

from kvquant.report.load import BASELINE, Results, Speed
from kvquant.report.style import HEAT_MAP, from_zero, log2_axis, look_of, panels, shared_legend

MIB = 1 << 20


def specs_of(speeds: list[Speed]) -> list[str]:
    """fp16 first, then as they come."""
    specs = list(dict.fromkeys(speed.spec for speed in speeds))
    return sorted(specs, key=lambda spec: spec != BASELINE)


def _plain(results: Results) -> list[Speed]:
    return [speed for speed in results.speeds if not speed.is_largest_batch]


def _value(speed: Speed, key: str) -> float | None:
    value = getattr(speed, key)
    return None if value is None or not speed.is_ok else float(value)


def _lines(axes: Axes, speeds: list[Speed], prompt: int, key: str, scale: float = 1) -> None:
    """A line per spec over the batch, of one prompt."""
    for index, spec in enumerate(specs_of(speeds)):
        points = [
            (speed.batch, value * scale)
            for speed in speeds
            if (speed.spec, speed.prompt) == (spec, prompt)
            and (value := _value(speed, key)) is not None
        ]
        if points:
            axes.plot(*zip(*sorted(points), strict=True), label=spec, **look_of(index))
    log2_axis(axes, sorted({speed.batch for speed in speeds if speed.prompt == prompt}))
    axes.set_xlabel("batch (sequences)")
    from_zero(axes)


def throughput(results: Results) -> Figure | None:
    """Prefill and decoding against the batch, a column per prompt."""
    speeds = _plain(results)
    prompts = sorted({speed.prompt for speed in speeds})
    if not any(speed.is_ok for speed in speeds):
        return None
    keys = {
        "prefill_tokens_per_s": "prefill (tokens/s)",
        "decode_tokens_per_s": "decoding (tokens/s)",
    }
    keys = {k: v for k, v in keys.items() if any(_value(s, k) is not None for s in speeds)}
    figure, axes = panels(len(keys), len(prompts))
    for column, prompt in enumerate(prompts):
        for row, (key, label) in enumerate(keys.items()):
            panel = axes[row][column]
            _lines(panel, speeds, prompt, key)
            panel.set_ylabel(label)
            panel.set_title(f"prompt of {prompt} tokens")
    shared_legend(figure)
    return figure


def _mark_out_of_memory(axes: Axes, speeds: list[Speed], prompt: int) -> None:
    """A cross of the spec's colour on top where it found no memory."""
    top = axes.get_ylim()[1]
    failed = [speed for speed in speeds if not speed.is_ok and speed.prompt == prompt]
    for index, spec in enumerate(specs_of(speeds)):
        batches = [speed.batch for speed in failed if speed.spec == spec]
        heights = [top * (1 - 0.06 * index)] * len(batches)
        axes.scatter(batches, heights, marker="x", color=look_of(index)["color"], zorder=3)
    if failed:
        axes.set_ylim(top=top * 1.05)


def memory(results: Results) -> Figure | None:
    """The cache's peak against the batch; crosses: out of memory."""
    speeds = _plain(results)
    prompts = sorted({speed.prompt for speed in speeds})
    if not any(speed.is_ok for speed in speeds):
        return None
    figure, axes = panels(1, len(prompts))
    for column, prompt in enumerate(prompts):
        _lines(axes[0][column], speeds, prompt, "peak_cache_bytes", 1 / MIB)
        _mark_out_of_memory(axes[0][column], speeds, prompt)
        axes[0][column].set_ylabel("peak of cache\nand scratch (MiB)")
        axes[0][column].set_title(f"prompt of {prompt} tokens")
    shared_legend(figure)
    return figure


def _ratios(speeds: list[Speed], spec: str, key: str) -> dict[tuple[int, int], float]:
    """(prompt, batch) -> times fp16."""
    of = {
        (s.spec, s.prompt, s.batch): value for s in speeds if (value := _value(s, key)) is not None
    }
    return {
        (prompt, batch): value / of[BASELINE, prompt, batch]
        for (name, prompt, batch), value in of.items()
        if name == spec and (BASELINE, prompt, batch) in of
    }


def _draw_ratios(
    panel: Axes,
    values: dict[tuple[int, int], float],
    axes_of: tuple[list[int], list[int]],
    limits: tuple[float, float],
) -> AxesImage:
    """(prompt, batch) -> times fp16, as a heat map with its numbers."""
    prompts, batches = axes_of
    low, high = limits[0] / 1.01, limits[1] * 1.01
    grid = [[values.get((p, b), float("nan")) for b in batches] for p in prompts]
    image = panel.imshow(
        grid, cmap=HEAT_MAP, norm=LogNorm(low, high), aspect="auto", origin="lower"
    )
    for (prompt, batch), value in values.items():
        panel.text(
            batches.index(batch),
            prompts.index(prompt),
            f"{value:.2f}",
            ha="center",
            va="center",
            color="black" if value > (low * high) ** 0.5 else "white",
        )
    panel.grid(visible=False)
    panel.set_xticks(range(len(batches)), [str(b) for b in batches])
    panel.set_yticks(range(len(prompts)), [str(p) for p in prompts])
    panel.set_xlabel("batch (sequences)")
    panel.set_ylabel("prompt (tokens)")
    return image


def speed_up(results: Results) -> Figure | None:
    """Times fp16, prompt by batch: a panel per spec, first for decoding, then for prefill."""
    speeds = _plain(results)
    specs = [spec for spec in specs_of(speeds) if spec != BASELINE]
    keys = {"decode_tokens_per_s": "decoding", "prefill_tokens_per_s": "prefill"}
    ratios = {
        (key, spec): of for key in keys for spec in specs if (of := _ratios(speeds, spec, key))
    }
    if not ratios:
        return None
    values = [value for of in ratios.values() for value in of.values()]
    prompts = sorted({speed.prompt for speed in speeds})
    batches = sorted({speed.batch for speed in speeds})
    columns = min(4, len({spec for _, spec in ratios}))
    rows_of_phase = {key: -(-sum(of_key == key for of_key, _ in ratios) // columns) for key in keys}
    figure, axes = panels(sum(rows_of_phase.values()), columns)
    flat = [panel for row in axes for panel in row]
    first = 0
    image = None
    for key, phase in keys.items():
        of_phase = flat[first : first + rows_of_phase[key] * columns]
        first += len(of_phase)
        shown = [spec for of_key, spec in ratios if of_key == key]
        for panel, spec in zip(of_phase, shown, strict=False):
            image = _draw_ratios(
                panel, ratios[key, spec], (prompts, batches), (min(values), max(values))
            )
            panel.set_title(f"{spec}, {phase}")
        for panel in of_phase[len(shown) :]:
            panel.set_visible(False)
    if image is not None:
        bar = figure.colorbar(
            image, ax=flat, label="tokens/s, times fp16 (empty: either not measured)"
        )
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bar.ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        bar.ax.minorticks_off()
    return figure


def energy(results: Results) -> Figure | None:
    """Joules per token against the batch; nothing where no energy is known."""
    speeds = _plain(results)
    keys = {"decode_joules_per_token": "decoding", "prefill_joules_per_token": "prefill"}
    keys = {k: v for k, v in keys.items() if any(_value(s, k) is not None for s in speeds)}
    if not keys:
        return None
    unit = "J/token, ASSUMED power" if any(s.is_energy_assumed for s in speeds) else "J/token"
    prompts = sorted({speed.prompt for speed in speeds})
    figure, axes = panels(len(keys), len(prompts))
    for column, prompt in enumerate(prompts):
        for row, (key, phase) in enumerate(keys.items()):
            panel = axes[row][column]
            _lines(panel, speeds, prompt, key)
            panel.set_ylabel(f"{phase}\n({unit})")
            panel.set_title(f"prompt of {prompt} tokens")
    shared_legend(figure)
    return figure
