"""Figures that only studies have: matrices, small panels, scatter and bars; drawn as :mod:`tomosec.report.figures` does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, PercentFormatter

from tomosec.report.figures import DASHES, INK, MARKERS, SERIES, STYLE, Line, fitting, svg

#: Columns of small panels.
PANELS_ACROSS = 5


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a scatter plot; ``group`` decides its color and shape."""

    x: float
    y: float
    label: str
    group: int = 0


def matrix_plot(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    row_label: str,
    column_label: str,
    alt: str,
    name: str,
) -> Markup:
    """Shares between 0 and 1 as shaded cells with their numbers; a missing one is a dash."""
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        size = (1.9 + 0.72 * len(columns), 1.5 + 0.42 * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for i, line in enumerate(values):
            for j, value in enumerate(line):
                if value is not None:
                    axes.fill_between(
                        [j - 0.5, j + 0.5], i - 0.5, i + 0.5, color=SERIES[1], alpha=0.08 + 0.6 * value, linewidth=0
                    )
                text = "–" if value is None else f"{100 * value:.0f}"
                axes.text(j, i, text, ha="center", va="center", color=INK, fontsize=9)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5), xlabel=column_label, ylabel=row_label)
        axes.xaxis.set_major_locator(FixedLocator(range(len(columns))))
        axes.yaxis.set_major_locator(FixedLocator(range(len(rows))))
        axes.set_xticklabels([fitting(text, 22) for text in columns], rotation=40, ha="right", fontsize=8.5)
        axes.set_yticklabels([fitting(text, 28) for text in rows], fontsize=8.5)
        axes.tick_params(length=0)
        return svg(figure, alt, name)


def panels_plot(panels: Sequence[tuple[str, Sequence[Line]]], *, x_label: str, y_label: str, alt: str, name: str) -> Markup:
    """A small panel per title, all with the same axes: shares over a positive x; references are dotted."""
    with matplotlib.rc_context(STYLE):
        across = min(PANELS_ACROSS, len(panels))
        down = math.ceil(len(panels) / across)
        figure = Figure(figsize=(0.6 + 1.55 * across, 0.5 + 1.35 * down), layout="constrained")
        places = sorted({x for _, lines in panels for line in lines for x in line.points})
        for index, (title, lines) in enumerate(panels):
            axes = figure.add_subplot(down, across, index + 1)
            for line in lines:
                xs = sorted(line.points)
                means = [sum(p.value for p in line.points[x]) / len(line.points[x]) for x in xs]
                style = (0, (1, 2)) if line.reference else DASHES[line.group % len(DASHES)]
                axes.plot(xs, means, color=SERIES[line.group % len(SERIES)], linestyle=style, linewidth=1.5)
                if not line.reference:
                    for x in xs:
                        axes.plot(
                            [x] * len(line.points[x]),
                            [point.value for point in line.points[x]],
                            linestyle="",
                            marker=MARKERS[line.group % len(MARKERS)],
                            color=SERIES[line.group % len(SERIES)],
                            markersize=3,
                            clip_on=False,
                        )
            axes.set(ylim=(0, 1.02))
            if places and places[0] > 0:
                axes.set_xscale("log")
                axes.xaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_major_locator(FixedLocator(places))
            axes.set_xticklabels([f"{x:g}" for x in places], fontsize=7)
            axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.tick_params(axis="y", labelsize=7)
            axes.set_title(fitting(title, 24), fontsize=8)
        figure.supxlabel(x_label, fontsize=9, color=INK)
        figure.supylabel(y_label, fontsize=9, color=INK)
        return svg(figure, alt, name)


def scatter_plot(
    panels: Sequence[tuple[str, Sequence[Mark]]], *, y_label: str, groups: Sequence[str], alt: str, name: str
) -> Markup:
    """Shares over several quantities, a panel each; every point has its label beside it."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.0 + 3.4 * len(panels), 3.6), layout="constrained")
        for index, (x_label, marks) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), index + 1)
            for group in sorted({mark.group for mark in marks}):
                chosen = [mark for mark in marks if mark.group == group]
                axes.plot(
                    [mark.x for mark in chosen],
                    [mark.y for mark in chosen],
                    linestyle="",
                    marker=MARKERS[group % len(MARKERS)],
                    color=SERIES[group % len(SERIES)],
                    markersize=5,
                    label=groups[group],
                    clip_on=False,
                )
            axes.margins(x=0.15)
            _label(axes, marks)
            axes.set(ylim=(0, 1.02), xlabel=x_label, ylabel=y_label if index == 0 else "")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            if index == 0:
                axes.legend(loc="upper left", bbox_to_anchor=(-0.1, -0.18), fontsize=8)
        return svg(figure, alt, name)


def _label(axes: Axes, marks: Sequence[Mark]) -> None:
    """Labels beside the points; points that lie together share one, so that no label hides another."""
    low, high = axes.get_xlim()
    near: list[list[Mark]] = []
    for mark in sorted(marks, key=lambda item: (item.x, item.y)):
        for group in near:
            if abs(mark.x - group[-1].x) < 0.06 * (high - low) and abs(mark.y - group[0].y) < 0.06:
                group.append(mark)
                break
        else:
            near.append([mark])
    for group in near:
        text = ", ".join(mark.label for mark in sorted(group, key=lambda item: marks.index(item)))
        # Above the points where there is room, below them at the upper edge.
        place, side = ((0, -6), "top") if group[0].y > 0.8 else ((0, 5), "bottom")
        at = (sum(mark.x for mark in group) / len(group), group[0].y)
        axes.annotate(text, at, xytext=place, textcoords="offset points", fontsize=7, color=INK, ha="center", va=side)


def bar_plot(rows: Sequence[tuple[str, float]], *, x_label: str, alt: str, name: str) -> Markup:
    """Positive amounts on a logarithmic axis, a bar each; zeros have none."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 0.8 + 0.28 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        positive = [amount for _, amount in rows if amount > 0]
        start = 10 ** math.floor(math.log10(min(positive))) if positive else 1.0
        for index, (_, amount) in enumerate(rows):
            if amount > 0:
                axes.plot([start, amount], [index, index], color=SERIES[0], linewidth=6, solid_capstyle="butt")
        axes.set_xscale("log")
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=x_label)
        axes.yaxis.set_major_locator(FixedLocator(range(len(rows))))
        axes.set_yticklabels([fitting(label, 40) for label, _ in rows], fontsize=8.5)
        axes.grid(visible=False, axis="y")
        return svg(figure, alt, name)
