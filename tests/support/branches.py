"""Branches of an encoder layer: drawn arguments, and the errors of a form of them."""

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import tree_paths
from nest_dist.model.kernels import attention, call, mlp

BRANCHES = {"attention": attention, "mlp": mlp}


def drawn(branch, B, T, N, C, heads, seed=0):
    """In float64, of the size that training reaches: factor, tokens, norm and parameters."""
    rng = np.random.default_rng(seed)

    def layer(inputs, outputs):
        kernel = rng.standard_normal((*inputs, *outputs)) / np.prod(inputs) ** 0.5
        return {"kernel": kernel, "bias": 0.1 * rng.standard_normal(outputs)}

    split = (heads, C // heads)
    if branch == "mlp":
        params = {"hidden": layer((C,), (4 * C,)), "output": layer((4 * C,), (C,))}
    else:
        params = {name: layer((C,), split) for name in ("query", "key", "value")}
        params["output"] = layer(split, (C,))
    of_norm = {"scale": 1 + 0.1 * rng.standard_normal(C), "bias": 0.1 * rng.standard_normal(C)}
    factor = np.resize([1.25, 0.0, 1.0], B)
    return factor, rng.standard_normal((B, T, N, C)) + 0.3, of_norm, params


def errors(branch, form, products, arguments):
    """Of what a branch adds and of its gradients, relative to `plain` in float64.

    Args:
        branch: "attention" or "mlp".
        form: "branch" for the kernels, "plain" for JAX.
        products: type of the matrices that are multiplied.
        arguments: of `drawn`.
    """
    module = BRANCHES[branch]
    weights = np.random.default_rng(9).standard_normal(arguments[1].shape)

    def computed(function):
        def both(factor, *rest):
            y, pull = jax.vjp(lambda *rest: function(factor, *rest), *rest)
            gradients = dict(
                zip(("x", "norm", "params"), pull(weights.astype(y.dtype)), strict=True)
            )
            return tree_paths.flatten({"added": y - rest[0], **gradients})

        return jax.jit(both)

    def rounded(matrix):
        return matrix.astype(products).astype(matrix.dtype)

    with jax.enable_x64(True):
        exact = jax.tree.map(np.asarray, computed(module.plain)(*arguments))
    low = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), arguments)
    if form == "branch":
        with call.interpreted(products):
            found = jax.device_get(computed(module.branch)(*low))
    else:
        found = computed(lambda *given: module.plain(*given, rounded))(*low)
    # Softmax ignores the bias of the keys.
    names = [name for name in exact if name != "params/key/bias"]
    norm = np.linalg.norm
    return {name: norm(found[name] - exact[name]) / norm(exact[name]) for name in names}
