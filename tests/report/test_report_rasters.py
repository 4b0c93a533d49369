"""Pictures in the report, decoded by the PNG format's definition and not by our writer."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import pytest

from tomosec.report import rasters


def decoded(uri: str) -> tuple[np.ndarray, bytes]:
    """Levels and palette of one of our PNGs, by the format's definition and not by our writer."""
    data = base64.b64decode(uri.partition(",")[2])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(name + body)
        chunks[name], at = body, at + 12 + size
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert (lines[:, 0] == 0).all()
    return lines[:, 1:], chunks.get(b"PLTE", b"")


def test_grey_window_is_linear_and_clips():
    values = np.array([[-2000.0, -1350.0, -600.0, 150.0, 3000.0]], dtype=np.float32)
    levels, _ = decoded(rasters.gray(values, *rasters.WINDOWS["lung"]).uri)
    assert levels.tolist() == [[0, 0, 128, 255, 255]]


def test_difference_is_white_at_zero_and_symmetric():
    levels, palette = decoded(rasters.signed(np.array([[-10.0, -2.5, 0.0, 2.5, 10.0, 99.0]], dtype=np.float32), 10.0).uri)
    colors = np.frombuffer(palette, np.uint8).reshape(-1, 3)[levels[0]].astype(int)
    assert colors[2].tolist() == [255, 255, 255]
    assert colors[0][2] > colors[0][0]
    assert colors[4][0] > colors[4][2]
    assert colors[4].tolist() == colors[5].tolist()
    assert levels[0][2] - levels[0][1] == levels[0][3] - levels[0][2]


def test_palette_darkens_evenly_away_from_zero():
    luminance = rasters.signed_palette().astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance[1:129]) >= -0.5).all()
    assert (np.diff(luminance[128:]) <= 0.5).all()


def test_shrinking_averages_whole_blocks():
    values = np.arange(36, dtype=np.float32).reshape(6, 6)
    small, block = rasters.shrink(values, 3)
    assert block == (2, 2)
    assert small[0, 0] == values[:2, :2].mean()


@pytest.mark.parametrize(("largest", "limit"), [(0.0, 1.0), (0.9, 1.0), (4.1, 5.0), (17.0, 20.0), (0.0031, 0.005)])
def test_scale_ends_at_a_round_number(largest, limit):
    assert rasters.symmetric_limit(np.full((4, 4), largest, np.float32)) == pytest.approx(limit)


def test_peaks_show_the_sample_farthest_from_zero():
    """A single one of 4 × 4 samples is not averaged away, and none at the end of a line is left out."""
    values = np.zeros((7, 9), dtype=np.float32)
    values[1, 1], values[2, 2], values[6, 8] = 3.0, -5.0, 4.0
    raster = rasters.signed(values, 5.0, 2, peaks=True)
    assert (raster.height, raster.width, raster.averaged) == (2, 2, (4, 5))
    levels, _ = decoded(raster.uri)
    assert levels.tolist() == [[1, 128], [128, 128 + round(4 / 5 * 127)]]
    averaged, _ = decoded(rasters.signed(values, 5.0, 2).uri)
    assert np.abs(averaged.astype(int) - 128).max() < 10
