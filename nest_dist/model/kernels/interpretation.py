"""Kernels on a CPU: interpreted, as tests do. It needs no Pallas, which takes long to import."""

import contextlib
import contextvars
import typing
from collections.abc import Iterator

Products = typing.Literal["float32", "bfloat16"]

_INTERPRETED: contextvars.ContextVar[Products | None] = contextvars.ContextVar(
    "interpreted", default=None
)


@contextlib.contextmanager
def interpreted(products: Products = "float32") -> Iterator[None]:
    """While this is open, kernels run on the CPU; memory that nothing wrote is NaN.

    Args:
        products: type of the matrices that a kernel multiplies.
    """
    token = _INTERPRETED.set(products)
    try:
        yield
    finally:
        _INTERPRETED.reset(token)


def is_on() -> bool:
    """Whether `interpreted` is open."""
    return _INTERPRETED.get() is not None


def products() -> Products:
    """The type of the matrices that kernels multiply: on a TPU bfloat16, as by its default."""
    return _INTERPRETED.get() or "bfloat16"
