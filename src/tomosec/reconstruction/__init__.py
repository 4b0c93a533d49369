"""Reconstruction: sinogram → image. ``fbp`` is filtered backprojection; every file here adds one technique."""
