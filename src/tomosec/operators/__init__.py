"""Differentiable CT operators: projection P, its transpose, FBP's backprojection B, and its transpose.

``Projector(geometry)`` and ``Backprojector(geometry)`` are the modules; ``project``, ``project_t``, ``backproject`` and
``backproject_t`` are the same as functions. Images are (B, 1, H, W), sinograms (B, 1, views, bins), float32 or float64.
Gradients are exact and can be taken any number of times.
"""

from tomosec.operators.dispatch import Backprojector, Projector, backproject, backproject_t, project, project_t

__all__ = ["Backprojector", "Projector", "backproject", "backproject_t", "project", "project_t"]
