"""Whether a picture can be stored as it is, has to be converted, or is left out; and the report."""

import dataclasses
import os
import typing

import numpy as np

from nest_dist.data import decode
from nest_dist.data.preparing import restarts

# Stored byte for byte, but for restart markers; everything else becomes an RGB PNG, without loss.
KEPT_KINDS = frozenset(("jpeg", "png", "webp"))
KEPT_COLOURS = frozenset(("rgb", "grey"))
KIND_BY_SUFFIX = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp"}


@dataclasses.dataclass(frozen=True)
class Remark:
    """A line of the report.

    Attributes:
        key: of the picture, or the name of what is none.
        outcome: what became of it.
        reason: in a few words.
    """

    key: str
    outcome: typing.Literal["left out", "converted", "kept"]
    reason: str


def stored(
    image: decode.Encoded | np.ndarray, key: str, restart_markers: bool
) -> tuple[decode.Encoded, Remark | None]:
    """The bytes to store, which decode to the same pixels, and what is unusual about the picture.

    Args:
        image: as it comes.
        key: its name.
        restart_markers: whether a JPEG gets some.
    Raises:
        Undecodable: if it is no whole picture.
    """
    pixels = decode.pixels(image)
    if isinstance(image, np.ndarray):
        return decode.encode(pixels, "png"), None
    found = decode.describe(image)
    if found.kind not in KEPT_KINDS or found.colour not in KEPT_COLOURS or found.bits != 8:
        return decode.encode(pixels, "png"), Remark(key, "converted", f"{found} to rgb png")
    named = KIND_BY_SUFFIX.get(os.path.splitext(key)[1].lower(), found.kind)
    remark = None
    if named != found.kind:
        remark = Remark(key, "kept", f"{found} named as {named}")
    elif found.colour != "rgb":
        remark = Remark(key, "kept", str(found))
    if restart_markers and found.kind == "jpeg":
        if (marked := restarts.marked(bytes(image), pixels)) is None:
            return image, Remark(key, "kept", f"{found}, which {restarts.PROGRAM} refuses")
        image = marked
    return image, remark
