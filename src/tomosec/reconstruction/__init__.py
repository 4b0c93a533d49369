"""Reconstruction: sinogram → image, one file per technique.

``fbp`` is filtered backprojection, with its ``filters`` and the ``redundancy`` of measured rays. ``sirt``, ``os_sart`` and
``cgls`` iterate the steps of ``iterative``; ``tv`` and ``pwls_tv`` minimize an objective. ``fbpconvnet``, ``red_cnn`` and
``learned_primal_dual`` are trained by ``learned``. ``saved`` keeps any of them in a file.
"""
