"""The entries of a TIFF directory: TIFF pictures have one, and so has EXIF in other formats.

Source: TIFF 6.0, section 2.
"""

import typing
from collections.abc import Collection

from nest_dist.data import batch

BITS_PER_SAMPLE, ORIENTATION, SAMPLES_PER_PIXEL = 258, 274, 277
MARKS: dict[bytes, typing.Literal["little", "big"]] = {b"II*\x00": "little", b"MM\x00*": "big"}
SHORT, LONG = 3, 4  # types of entries, of 2 and of 4 bytes
ENTRY_BYTES = 12


def entries(data: batch.Encoded, wanted: Collection[int]) -> dict[int, tuple[int, ...]]:
    """The whole numbers of some tags in the first directory; without those that are malformed."""
    view, found = memoryview(data), dict[int, tuple[int, ...]]()
    order = MARKS.get(bytes(view[:4]))
    if order is None:
        return found

    def number(at: int, size: int) -> int:
        return int.from_bytes(view[at : at + size], order)

    start = number(4, 4)
    for at in range(start + 2, start + 2 + ENTRY_BYTES * number(start, 2), ENTRY_BYTES):
        if at + ENTRY_BYTES > len(view):
            break
        tag, kind, count = number(at, 2), number(at + 2, 2), number(at + 4, 4)
        size = {SHORT: 2, LONG: 4}.get(kind)
        if tag in wanted and size and 0 < count < 1000:
            # Up to four bytes stand in the entry itself.
            values = at + 8 if size * count <= 4 else number(at + 8, 4)
            found[tag] = tuple(number(values + size * index, size) for index in range(count))
    return found


def pages(data: batch.Encoded) -> int:
    """The number of directories; those that form a ring count once."""
    view, seen = memoryview(data), set[int]()
    order = MARKS.get(bytes(view[:4]))
    at = 4
    while order is not None and at + 4 <= len(view):
        start = int.from_bytes(view[at : at + 4], order)
        if start == 0 or start in seen:
            break
        seen.add(start)
        at = start + 2 + ENTRY_BYTES * int.from_bytes(view[start : start + 2], order)
    return len(seen)
