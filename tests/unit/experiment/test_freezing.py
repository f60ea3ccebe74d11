"""What a frozen backbone saves: gradients, moments, and the memory of activations."""

import jax
import pytest
from support import frozen

pytestmark = pytest.mark.medium


@pytest.mark.slow
def test_a_frozen_backbone_costs_less_than_half_the_arithmetic_and_memory():
    (whole, full, _), (partial, slim, _) = (
        frozen.compiled(bindings) for bindings in frozen.STEPS.values()
    )
    # A backward pass takes twice the arithmetic of the forward pass, which stays.
    assert frozen.flops(partial) < 0.4 * frozen.flops(whole)
    assert frozen.temporary_bytes(partial) < 0.5 * frozen.temporary_bytes(whole)
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(it.optimizer)) for it in (full, slim)]
    assert sizes[1] < 0.02 * sizes[0]
