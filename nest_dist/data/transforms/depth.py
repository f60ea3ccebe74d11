"""Pictures of more than 8 bits: their values scaled to uint8, by a range that is never guessed."""

import numpy as np

Range = tuple[float, float]

# What black and white are where nothing else is said.
USUAL = {"uint16": (0, 65535), "float32": (0, 1), "float64": (0, 1)}


class OutsideRange(ValueError):
    """The values do not tell what is black and white; the text says why, and names the remedy."""


def as_bytes(values: np.ndarray, value_range: Range | None) -> np.ndarray:
    """Values of any type as uint8; uint8 as it is.

    Args:
        value_range: what becomes 0 and 255, values outside are clipped. None is that of the type,
            65535 for 16 bits and 1 for floats, if the picture uses at least half of it: else it
            may be one of fewer bits in a larger type, of whose levels few would be left.
    Raises:
        OutsideRange: if `value_range` is None and the values do not fill that of their type.
    """
    if values.dtype == np.uint8:
        return values
    smallest, largest = values.min(), values.max()
    if not np.isfinite(smallest) or not np.isfinite(largest):
        raise OutsideRange("values that are not finite; replace them in the picture")
    low, high = value_range or USUAL.get(values.dtype.name, (0, 0))
    if value_range is None and not (low <= smallest and (low + high) / 2 < largest <= high):
        usual = f" of [{low}, {high}]" if high else ""
        raise OutsideRange(
            f"values in [{smallest}, {largest}]{usual}; say what is black and white by value_range "
            f"of the transform that decodes, such as {_proposed(smallest, largest)}"
        )
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _proposed(smallest: np.generic, largest: np.generic) -> Range:
    """That of fewer bits, if all values are positive and whole; else from the smallest on."""
    low, high = smallest.item(), largest.item()
    return (0, 2 ** high.bit_length() - 1) if isinstance(high, int) and low >= 0 else (low, high)
