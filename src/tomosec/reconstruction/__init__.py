"""Reconstruction: sinogram → image.

``fbp`` is filtered backprojection, with its ``filters`` and the ``redundancy`` of measured rays; ``iterative`` has the steps of
SIRT, SART and CGLS.
"""
