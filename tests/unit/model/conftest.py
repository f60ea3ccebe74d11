"""Each member of the family, compiled once."""

import dataclasses
import typing

import jax
import pytest
from support import family

from nest_dist import NesT


@dataclasses.dataclass(frozen=True)
class Member:
    model: NesT
    variables: typing.Any
    images: jax.Array  # [3, H, W, C]
    capture: typing.Callable[..., typing.Any]  # logits and level outputs from variables, images


@pytest.fixture(scope="session", params=family.MEMBERS)
def member(request: pytest.FixtureRequest) -> Member:
    model = family.member(request.param)
    H, W = model.geometry().image_sides
    images = jax.random.normal(jax.random.key(1), (3, H, W, model.num_channels))
    variables = {"params": family.random_params(model)}
    capture = jax.jit(lambda v, x: model.apply(v, x, mutable="intermediates"))
    return Member(model, variables, images, capture)
