"""A loaded model in a few lines, for a terminal and for a notebook."""

import html
from collections.abc import Sequence

from nest_dist.model import nest

Rows = Sequence[tuple[str, str]]
_SHOWN_CLASSES = 8


def rows(
    model: nest.NesT,
    name: str | None,
    parameters: int,
    class_names: Sequence[str],
    source: str,
    notes: Sequence[str],
) -> Rows:
    """Pairs of a title and its text.

    Args:
        class_names: empty if they are not known.
    """
    H, W = model.geometry().image_sides
    colour = {1: "grey", 3: "RGB"}.get(model.num_channels, f"{model.num_channels} channels")
    layers = ", ".join(map(str, model.block_repeats))
    shape = f"levels of {layers} layers, width {model.dim}, heads {model.heads}"
    shown = list(class_names[:_SHOWN_CLASSES])
    named = f": {', '.join(shown)}" if shown else ", without names"
    more = len(class_names) - len(shown)
    classes = f"{model.num_classes}{named}{f' and {more} more' if more else ''}"
    return (
        ("model", f"{name or 'NesT'}, {parameters:,} parameters: {shape}"),
        ("classes", classes if model.num_classes else "none: it gives features"),
        ("image", f"{H} x {W} pixels, {colour}"),
        ("from", source),
        *(("", note) for note in notes),
    )


def text(title: str, table: Rows) -> str:
    """The rows under a title."""
    return "\n".join([title, *(f"  {name:<8} {value}" for name, value in table)])


def as_html(title: str, table: Rows) -> str:
    """The rows as a table of HTML."""
    cells = "".join(
        f'<tr><th style="text-align:left">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(value)}</td></tr>'
        for name, value in table
    )
    return f"<table><caption><b>{html.escape(title)}</b></caption>{cells}</table>"
