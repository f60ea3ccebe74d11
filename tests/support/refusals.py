"""What is refused, and in which words."""

import re

import pytest

from nest_dist.base import failures


def refusal(*texts):
    """A context in which a `BadInput` is raised that has these texts, one after the other."""
    return pytest.raises(failures.BadInput, match=".*".join(map(re.escape, texts)))
