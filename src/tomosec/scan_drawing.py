"""A picture of a scan, in mm. Matplotlib is loaded when one is drawn, not before."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tomosec.geometry import Geometry

_COLORS = {"image": "0.8", "scan circle": "0.4", "views": "tab:orange", "first view": "tab:blue", "detector": "tab:red"}


def draw_scan(geometry: Geometry, ax: Axes | None = None) -> Axes:
    """Draw a scan; see :meth:`tomosec.geometry.Geometry.plot`."""
    from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots()[1]
    height, width = geometry.size_mm
    ax.add_patch(Rectangle((-width / 2, -height / 2), width, height, color=_COLORS["image"], lw=0, label="image"))
    ax.add_patch(Circle((0, 0), geometry.scan_radius_mm, fill=False, color=_COLORS["scan circle"], label="scan circle"))

    angles = geometry.view_angles
    path = np.stack([geometry._view_outline(angle)[0].mean(axis=0) for angle in angles])
    ax.plot(path[:, 0], path[:, 1], ".", ms=2, color=_COLORS["views"], label="views")
    starts, detector = geometry._view_outline(angles[0])
    # One line there and back: from the detector's first edge to where the rays start, and to its other edge.
    rays = np.concatenate([detector[:1], starts, detector[-1:]])
    ax.plot(rays[:, 0], rays[:, 1], color=_COLORS["first view"], lw=1, label="first view")
    ax.plot(detector[:, 0], detector[:, 1], color=_COLORS["detector"], lw=2, label="detector")
    if geometry.angles is None:
        ahead = geometry._view_outline(angles[0] + math.copysign(0.4, geometry.arc))[0].mean(axis=0)
        bend = math.copysign(0.2, geometry.arc)  # the arrow follows the circle
        arrow = FancyArrowPatch(
            tuple(path[0]),
            tuple(ahead),
            arrowstyle="->",
            mutation_scale=15,
            connectionstyle=f"arc3,rad={bend}",
            color=_COLORS["views"],
            label="rotation",
        )
        ax.add_patch(arrow)
    ax.set(aspect="equal", xlabel="x (mm)", ylabel="y (mm)")
    ax.autoscale_view()
    return ax
