import math

import jax
import jax.numpy as jnp
import pytest
from support import family

from nest_dist.model import flops
from nest_dist.pretrained import variants


# arXiv 2105.12723, table 3: multiply-adds of one image of 224 pixels a side, in billions.
@pytest.mark.parametrize(
    ("name", "billions"), [("nest_tiny", 5.8), ("nest_small", 10.4), ("nest_base", 17.9)]
)
def test_the_paper_counts_the_same_multiply_adds(name, billions):
    # The paper rounds, and may count what is not a product.
    assert flops.multiply_adds(variants.models()[name]) == pytest.approx(billions * 1e9, rel=0.01)


def products(jaxpr):
    """Multiply-adds of the matrix products and convolutions of a traced function."""
    total = 0
    for equation in jaxpr.eqns:
        results = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += results * math.prod(left[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = equation.params["dimension_numbers"].rhs_spec[0]
            total += results * math.prod(kernel) // kernel[outputs]
        for value in equation.params.values():
            # Branches are the same arithmetic in the forms of the platforms.
            choices = value if isinstance(value, tuple) else (value,)
            inner = [getattr(choice, "jaxpr", choice) for choice in choices]
            counts = {products(branch) for branch in inner if hasattr(branch, "eqns")}
            assert len(counts) <= 1
            total += sum(counts)
    return total


@pytest.mark.parametrize("kind", family.SMALL)
def test_the_model_itself_does_as_many(kind):
    model = family.small(kind)
    params = family.random_params(model)
    H, W = model.geometry().image_sides
    image = jnp.zeros((1, H, W, model.num_channels))
    traced = jax.make_jaxpr(lambda x: model.apply({"params": params}, x))(image)
    assert products(traced.jaxpr) == flops.multiply_adds(model)
