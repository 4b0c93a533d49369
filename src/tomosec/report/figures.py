"""Curves and interval plots as inline SVG that follows the page's colors, light or dark.

matplotlib draws with stand-in colors that are replaced by CSS variables. Everything that could differ between two builds of
the same record (date, random ids) is fixed or removed.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

#: Stand-in color in the drawing to CSS variable on the page.
INK, _FAINT = "#010102", "#010103"
SERIES = tuple(f"#0102{index:02x}" for index in range(1, 9))
_VARIABLES = {INK: "--ink", _FAINT: "--line"} | {color: f"--series-{index}" for index, color in enumerate(SERIES, 1)}
#: Color is never the only thing that tells two series apart.
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

STYLE: Any = {
    "svg.hashsalt": "tomosec",
    "svg.fonttype": "none",
    "font.size": 10.0,
    "font.family": ["DejaVu Sans"],
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "text.parse_math": False,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True, slots=True)
class Point:
    """A value with its interval; the interval may be missing."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A series over the x axis: at each x the values of the seeds.

    Attributes:
        label: shown in the legend.
        points: x to the points of every seed.
        reference: drawn thin and without seeds; for floors.
        group: which color it gets.
    """

    label: str
    points: Mapping[float, Sequence[Point]]
    reference: bool = False
    group: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the interval plot: a model on a kind of input, with one point per seed.

    Attributes:
        label: at the axis.
        points: one per seed.
        group: which color and shape it gets.
        reference: drawn hollow and without intervals; for floors.
    """

    label: str
    points: Sequence[Point] = field(default_factory=tuple)
    group: int = 0
    reference: Sequence[Point] = field(default_factory=tuple)


def interval_plot(rows: Sequence[Row], *, x_label: str, alt: str, name: str, low: float = 0.0) -> Markup:
    """Rows of points with their intervals on a common axis from ``low`` to 100 %, and a tick at each row's mean."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 0.7 + (0.5 if len(rows) <= 8 else 0.3) * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for index, row in enumerate(rows):
            color, marker = SERIES[row.group % len(SERIES)], MARKERS[row.group % len(MARKERS)]
            count = len(row.points)
            for place, point in enumerate(row.points):
                y = index + (place - (count - 1) / 2) * 0.2
                if point.low is not None and point.high is not None:
                    axes.plot([point.low, point.high], [y, y], color=color, linewidth=1.4, solid_capstyle="butt")
                axes.plot([point.value], [y], marker=marker, color=color, markersize=4.5, clip_on=False)
            for point in row.reference:
                axes.plot([point.value], [index], marker="o", markerfacecolor="none", color=INK, markersize=5, clip_on=False)
            if count > 1:
                mean = sum(point.value for point in row.points) / count
                axes.plot([mean, mean], [index - 0.38, index + 0.38], color=INK, linewidth=1.0)
        axes.set(xlim=(low, 1), ylim=(len(rows) - 0.4, -0.6), xlabel=x_label)
        if low < 0:
            axes.axvline(0, color=INK, linewidth=0.8)
        axes.yaxis.set_major_locator(FixedLocator(range(len(rows))))
        axes.set_yticklabels([row.label for row in rows])
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        return svg(figure, alt, name)


def line_plot(
    lines: Sequence[Line], *, x_label: str, y_label: str, alt: str, name: str, ticks: Sequence[str] | None = None
) -> Markup:
    """Values over a budget: the mean over seeds as a line, each seed as a point with its interval.

    Args:
        lines: the series.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        alt: what the figure says, for those who do not see it.
        name: makes its ids unique on the page.
        ticks: names of the places, in their order, where x is no number but a rank.
    """
    with matplotlib.rc_context(STYLE):
        columns = 1 if max(len(line.label) for line in lines) > 32 else 2
        # The legend takes its room from the figure, and not from the axes.
        figure = Figure(figsize=(5.4, 3.0 + 0.18 * math.ceil(len(lines) / columns)), layout="constrained")
        axes = figure.add_subplot()
        places = sorted({x for line in lines for x in line.points})
        logarithmic = ticks is None and len(places) > 1 and places[0] > 0 and places[-1] / places[0] >= 8
        if logarithmic:
            axes.set_xscale("log")
        groups = 1 + max(line.group for line in lines)
        for line in lines:
            # Where the colors begin again, dashes and markers go on by one, so that no two groups look the same.
            shape = line.group + line.group // len(SERIES)
            color, style, marker = SERIES[line.group % len(SERIES)], DASHES[shape % len(DASHES)], MARKERS[shape % len(MARKERS)]
            xs = sorted(line.points)
            means = [sum(p.value for p in line.points[x]) / len(line.points[x]) for x in xs]
            if line.reference:
                axes.plot(
                    xs,
                    means,
                    color=color,
                    linestyle=(0, (1, 2)),
                    linewidth=1.2,
                    marker=marker,
                    markersize=3,
                    markerfacecolor="none",
                    label=fitting(line.label, 70),
                )
                continue
            axes.plot(xs, means, color=color, linestyle=style, linewidth=1.8, label=fitting(line.label, 70))
            for x in xs:
                for place, point in enumerate(line.points[x]):
                    # Seeds and groups lie side by side, so that no interval hides another.
                    count = len(line.points[x])
                    step = place - (count - 1) / 2 + (line.group - (groups - 1) / 2) * (count + 0.7)
                    step = step if groups * count < 12 else step * 12 / (groups * count)
                    at = x * (1 + 0.016 * step) if logarithmic else x + 0.006 * step * ((places[-1] - places[0]) or 1)
                    if point.low is not None and point.high is not None:
                        axes.plot([at, at], [point.low, point.high], color=color, linewidth=1.0)
                    axes.plot([at], [point.value], marker=marker, color=color, markersize=4, clip_on=False)
        axes.set(ylim=(0, 1.02), xlabel=x_label, ylabel=y_label)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels(list(ticks) if ticks is not None else [f"{x:g}" for x in places])
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(-0.1, -0.17),
            ncols=columns,
            fontsize=9,
        )
        return svg(figure, alt, name)


def learning_curve(quantity: str, lines: Mapping[str, Sequence[tuple[float, float]]], *, alt: str, name: str) -> Markup:
    """One quantity over epochs, a line per model: ``{model: [(epoch, value)]}``."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.0, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for which, (label, points) in enumerate(lines.items()):
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=SERIES[which % len(SERIES)],
                linestyle=DASHES[which % len(DASHES)],
                linewidth=1.5,
                marker="." if len(points) < 3 else "",
                label=fitting(label, 30),
            )
        axes.set(xlabel="epoch", ylabel=fitting(quantity, 30))
        _share_axis(axes, quantity)
        axes.legend(loc="upper left", bbox_to_anchor=(-0.1, -0.2), ncols=2 if len(lines) > 1 else 1, fontsize=8)
        return svg(figure, alt, name)


def _share_axis(axes: Axes, quantity: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if any(word in quantity for word in ("accuracy", "success", "asr")):
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def fitting(text: str, most: int) -> str:
    """A label that leaves room for the drawing; names of models and fields may be anything."""
    return text if len(text) <= most else text[: most - 1] + "…"


def svg(figure: Figure, alt: str, name: str) -> Markup:
    """Serialise, drop what is not the picture, make ids unique on the page and colors follow it."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', lambda found: f"{found.group(1)}{name}-", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    width = float(figure.get_figwidth()) * 96
    opening = f'<svg class="plot" role="img" aria-label="{escape(alt)}" style="max-width:{width:.0f}px"'
    text = re.sub(r'(<svg [^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    # matplotlib escaped every text it wrote, so this is markup and not data.
    return Markup(text.replace("<svg", opening, 1))  # noqa: S704


def light(drawing: Markup) -> str:
    """A drawing as a file of its own: with the light colors of the page, on white."""
    text = str(drawing)
    for name, color in _light_colors().items():
        text = text.replace(f"var({name})", color)
    text = text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) if "xmlns=" not in text[:400] else text
    opening = text.index(">", text.index("<svg")) + 1
    return f'{text[:opening]}<rect width="100%" height="100%" fill="{_light_colors()["--paper"]}"/>{text[opening:]}'


def _light_colors() -> dict[str, str]:
    """The page's variables; the first definition of each is the light one."""
    style = files("tomosec.report").joinpath("templates", "style.css").read_text(encoding="utf-8")
    colors: dict[str, str] = {}
    for name, color in re.findall(r"(--[a-z0-9-]+):\s*(#[0-9a-f]{3,6})", style):
        colors.setdefault(name, color)
    return colors
