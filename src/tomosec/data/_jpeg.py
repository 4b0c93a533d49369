"""What a JPEG stream says about itself, checked before it is decoded.

GDCM ends the whole process (segmentation fault, uncaught C++ exception) on streams whose headers are damaged or do not fit
the DICOM header, so such a file must not reach it. Markers: ITU-T T.81, annex B.
"""

from __future__ import annotations

#: Start-of-frame markers: all of 0xC0 to 0xCF except DHT, JPG and DAC.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN, _SCAN = 0xC4, 0xDA


def jpeg_fault(stream: bytes, rows: int, columns: int, bits: int) -> str:
    """Return why a stream cannot be one grayscale image of this size and at most ``bits`` bits, or an empty string."""
    if stream[:2] != b"\xff\xd8":
        return "its pixels do not start as JPEG"
    place, frame, tables = 2, False, set()
    while True:
        if stream[place : place + 1] != b"\xff" or place + 4 > len(stream):
            return "a JPEG segment is damaged or missing"
        marker, length = stream[place + 1], int.from_bytes(stream[place + 2 : place + 4], "big")
        body = stream[place + 4 : place + 2 + length]
        if length < 2 or len(body) != length - 2:
            return "a JPEG segment is damaged or cut off"
        if marker in _FRAMES:
            found = (int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big"))
            if frame or len(body) != 9 or body[5] != 1 or body[7] != 0x11:
                return "its JPEG stream is not one grayscale image"
            if found != (rows, columns) or not 2 <= body[0] <= bits:
                size = f"{found[0]} x {found[1]} pixels of {body[0]} bits"
                return f"its JPEG stream has {size}, the header {rows} x {columns} of {bits}"
            frame = True
        elif marker == _HUFFMAN:
            identifiers = _huffman_tables(body)
            if not identifiers:
                return "a Huffman table of its JPEG stream is damaged"
            tables |= identifiers
        elif marker == _SCAN:
            if not frame or len(body) != 6 or body[0] != 1 or body[2] >> 4 not in tables:
                return "its JPEG stream lacks a frame or a Huffman table"
            # Without its end marker a stream was cut; the decoder would fill the rest with what it likes.
            return "" if stream.rstrip(b"\0")[-2:] == b"\xff\xd9" else "its JPEG stream is cut off"
        place += 2 + length


def _huffman_tables(body: bytes) -> set[int]:
    """Return the identifiers of the direct-current tables of a segment; empty where it is damaged."""
    found: set[int] = set()
    place = 0
    while place < len(body):
        kind, counts = body[place], body[place + 1 : place + 17]
        total = sum(counts)
        if len(counts) < 16 or kind & 0xE0 or kind & 0x0F > 3 or total > 256 or place + 17 + total > len(body):
            return set()
        # Codes of n bits must fit into n bits (Kraft), or the decoder reads past its table.
        if sum(count << (15 - i) for i, count in enumerate(counts)) > 1 << 16:
            return set()
        if kind < 0x10:
            found.add(kind)
            if any(category > 16 for category in body[place + 17 : place + 17 + total]):
                return set()
        place += 17 + total
    return found
