"""Images as they are put into the report: pixel-exact PNG, one byte a pixel, the same bytes for the same numbers.

Grey is for attenuation only. A difference gets a diverging palette that is white at zero and symmetric, so that "no change"
cannot look like a change.
"""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass

import matplotlib
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: Display windows in HU: name to (lowest, highest) value shown.
WINDOWS: dict[str, tuple[float, float]] = {"lung": (-1350.0, 150.0), "soft": (-160.0, 240.0)}
WINDOW_NAMES = {"lung": "lung window (width 1500, level −600 HU)", "soft": "soft-tissue window (width 400, level 40 HU)"}


@dataclass(frozen=True, slots=True)
class Raster:
    """A picture and what is needed to read it.

    Attributes:
        uri: PNG as a data URI.
        width, height: in picture pixels.
        low, high: values at the ends of the color bar.
        averaged: block size that was averaged into one pixel of the picture; 1 shows every sample.
    """

    uri: str
    width: int
    height: int
    low: float
    high: float
    averaged: tuple[int, int] = (1, 1)


def gray(values: Floats, low: float, high: float, largest: int = 256) -> Raster:
    """Grey picture, black at ``low`` and white at ``high``."""
    small, block = shrink(values, largest)
    return Raster(_png(_levels(small, low, high), None), small.shape[1], small.shape[0], low, high, block)


def signed(values: Floats, limit: float, largest: int = 256, *, peaks: bool = False) -> Raster:
    """Picture of a difference: blue below zero, white at zero, red above, saturated beyond ``limit`` on either side.

    With ``peaks``, a block of samples shows the one farthest from zero instead of their mean, which would hide a single one.
    """
    small, block = shrink(values, largest, peaks=peaks)
    limit = limit if limit > 0 else 1.0
    return Raster(_png(_signed_levels(small, limit), signed_palette()), small.shape[1], small.shape[0], -limit, limit, block)


def gray_bar() -> str:
    """A color bar of :func:`gray`, dark at the left."""
    return _png(np.arange(256, dtype=np.uint8)[None, :], None)


def signed_bar() -> str:
    """A color bar of :func:`signed`, negative at the left."""
    return _png(np.arange(1, 256, dtype=np.uint8)[None, :], signed_palette())


def signed_palette() -> NDArray[np.uint8]:
    """256 RGB colors; index 128 is pure white, and 128 − k mirrors 128 + k."""
    colors = matplotlib.colormaps["RdBu_r"](np.linspace(0, 1, 255))[:, :3]
    colors = np.concatenate([colors[:1], colors])
    # The middle of the published palette is a light grey; zero must be white.
    distance = np.abs(np.arange(256) - 128)[:, None] / 127.0
    mixed = np.where(distance < 0.1, 1 - (1 - colors) * distance / 0.1, colors)
    mixed[128] = 1.0
    return np.asarray(np.round(mixed * 255), dtype=np.uint8)


def symmetric_limit(values: Floats, quantile: float = 0.995) -> float:
    """A round number that nearly all absolute values stay below: 1, 2 or 5 times a power of ten."""
    size = float(np.quantile(np.abs(values), quantile)) if values.size else 0.0
    if not np.isfinite(size) or size <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(size))
    return float(next(step * power for step in (1, 2, 3, 5, 10) if step * power >= size))


def shrink(values: Floats, largest: int, *, peaks: bool = False) -> tuple[Floats, tuple[int, int]]:
    """Average whole blocks until neither side is over ``largest``; what does not fill a block at the end is left out.

    With ``peaks``, a block gives the value farthest from zero instead, and what fills no block makes smaller ones.
    """
    values = np.nan_to_num(np.asarray(values, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    rows, columns = (max(1, -(-size // largest)) for size in values.shape)
    if rows == columns == 1:
        return values, (1, 1)
    if peaks:
        filled = np.pad(values, ((0, -values.shape[0] % rows), (0, -values.shape[1] % columns)))
        blocks = filled.reshape(filled.shape[0] // rows, rows, filled.shape[1] // columns, columns)
        low, high = blocks.min((1, 3)), blocks.max((1, 3))
        return np.asarray(np.where(high >= -low, high, low), dtype=np.float32), (rows, columns)
    height, width = values.shape[0] // rows, values.shape[1] // columns
    blocks = values[: height * rows, : width * columns].reshape(height, rows, width, columns)
    return np.asarray(blocks.mean((1, 3)), dtype=np.float32), (rows, columns)


def outline(mask: NDArray[np.bool_]) -> str:
    """Transparent picture of a mask's outline, yellow, to lay over a slice."""
    inner = mask.copy()
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    palette = np.array([[0, 0, 0], [255, 210, 0]], dtype=np.uint8)
    return _png((mask & ~inner).astype(np.uint8), palette, transparent=True)


def _levels(values: Floats, low: float, high: float) -> NDArray[np.uint8]:
    return np.asarray(np.round(np.clip((values - low) / (high - low), 0, 1) * 255), dtype=np.uint8)


def _signed_levels(values: Floats, limit: float) -> NDArray[np.uint8]:
    return np.asarray(128 + np.round(np.clip(values / limit, -1, 1) * 127), dtype=np.uint8)


def _png(levels: NDArray[np.uint8], palette: NDArray[np.uint8] | None, *, transparent: bool = False) -> str:
    """8-bit PNG, grey or with a palette, whose first color may be transparent.

    Written here because it is twenty lines, gives a third of RGB's size, and puts no date or version into the file.
    """
    height, width = levels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), levels], axis=1)  # filter type 0 before every line
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if palette is None else 3, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")]
    if palette is not None:
        parts.insert(1, (b"PLTE", palette.tobytes()))
    if transparent:
        parts.insert(2, (b"tRNS", b"\x00"))
    chunks = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunks).decode("ascii")
