"""A curve drawn with characters."""

import textwrap
from collections.abc import Sequence

ROWS, COLUMNS = 10, 64
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def draw(title: str, values: Sequence[float], last: int) -> str:
    """Bars from 0 to the largest value, one for each of `COLUMNS` equal parts of the axis.

    Args:
        values: not negative, at equal distances from 0 to `last`; at least two.
        last: the right end of the axis.
    """
    largest = max(values) or 1.0
    picked = [values[round(at * (len(values) - 1) / (COLUMNS - 1))] for at in range(COLUMNS)]
    heights = [round(value / largest * ROWS * 8) for value in picked]
    lines = []
    for row in reversed(range(ROWS)):
        label = f"{largest * (row + 1) / ROWS:.3g}" if row in (ROWS - 1, ROWS // 2 - 1) else ""
        bars = "".join(_EIGHTHS[min(max(height - 8 * row, 0), 8)] for height in heights)
        lines.append(f"{label:>9} |{bars}".rstrip())
    middle = f"{last // 2:,}"
    axis = f"0{middle:^{COLUMNS - 1 - len(f'{last:,}')}}{last:,}"
    body = "\n".join([*lines, f"{0:>9} +{'-' * COLUMNS}", f"{'step':>9}  {axis}"])
    return f"{title}\n{textwrap.indent(body, '  ')}"
