"""cuDNN's attention for GPUs that are not here: which models it serves, and what it is given."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import layouts

from nest_dist import NesT
from nest_dist.base import failures
from nest_dist.model import attention, fused, on_gpu

SMALL = {
    "image_size": 32,
    "patch_size": 4,
    "dim": 16,
    "heads": 1,
    "num_hierarchies": 2,
    "block_repeats": (1, 1),
    "num_classes": 5,
    "compute_dtype": "bfloat16",
}


def gpus(capability="9.0"):
    """What `fused.choose` asks of a mesh of GPUs."""
    device = types.SimpleNamespace(
        platform="gpu", device_kind="NVIDIA Card", compute_capability=capability
    )
    return types.SimpleNamespace(mesh=types.SimpleNamespace(devices=np.array([device])))


def cudnn(calls):
    """In the place of cuDNN: the same by XLA; the shapes that it is given go to `calls`."""

    def attend(query, key, value):
        calls.append(query.shape)
        if query.shape[-1] % 8:
            raise NotImplementedError("The head dim must be a multiple of 8.")
        return attention.attend(query[None], key[None], value[None])[0]

    return attend


def test_cudnn_attends_on_gpus(monkeypatch):
    monkeypatch.setattr(on_gpu, "_attend", cudnn([]))
    for kernels in ("auto", "fused", "cudnn"):
        chosen = fused.choose(NesT(**SMALL, kernels=kernels), gpus())
        assert str(chosen) == "kernels: cudnn, since devices, mesh and model allow it"


@pytest.mark.parametrize(
    ("changes", "capability", "reason"),
    [
        (
            {"compute_dtype": "float32"},
            "9.0",
            "NesT.compute_dtype is 'float32', and cuDNN attends in 'bfloat16'; set that, or set it",
        ),
        ({"multi_query": True}, "9.0", "the model has one key and value head; set it to 'auto'"),
        ({"attention_dropout": 0.1}, "9.0", "NesT.attention_dropout is 0.1; set it to 0, or set"),
        ({}, "7.5", "NVIDIA Card is of compute capability 7.5, below 8.0; set it to 'auto'"),
        ({"dim": 12}, "9.0", r"cuDNN refuses \(The head dim must be a multiple of 8.\); set it to"),
    ],
)
def test_what_cudnn_does_not_serve_is_plain_or_refused(changes, capability, reason, monkeypatch):
    monkeypatch.setattr(on_gpu, "_attend", cudnn([]))
    assert fused.choose(NesT(**{**SMALL, **changes}), gpus(capability)).form == "plain"
    with pytest.raises(failures.BadInput, match=f"NesT.kernels is 'fused', but {reason}"):
        fused.choose(NesT(**{**SMALL, **changes, "kernels": "fused"}), gpus(capability))


def test_a_host_without_cudnn_is_told(monkeypatch):
    def missing(*_):
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(on_gpu, "_attend", missing)
    chosen = fused.choose(NesT(**SMALL), gpus())
    assert str(chosen) == "kernels: plain, since cuDNN refuses (cuDNN is not detected.)"


def test_cudnn_is_for_gpus():
    with pytest.raises(failures.BadInput, match=r"NesT.kernels is 'cudnn', but the devices are of"):
        fused.choose(NesT(**SMALL, kernels="cudnn"), layouts.layout(data=1))


@pytest.mark.medium
@pytest.mark.parametrize("mesh", [{}, {"data": 2, "rows": 2, "tensor": 2}])
def test_each_device_gives_cudnn_its_blocks_and_heads(mesh, monkeypatch):
    calls = []
    monkeypatch.setattr(on_gpu, "_attend", cudnn(calls))
    query, key, value = jax.random.normal(jax.random.key(0), (3, 4, 4, 16, 2, 8), jnp.bfloat16)
    if mesh:
        with layouts.layout(**mesh).active():
            attended = jax.jit(on_gpu.attend)(query, key, value)
    else:
        attended = on_gpu.attend(query, key, value)
    devices = {"data": 1, "rows": 1, "tensor": 1, **mesh}
    blocks = 4 * 4 // devices["data"] // devices["rows"]
    assert calls == [(blocks, 16, 2 // devices["tensor"], 8)]
    expected = attention.attend(query, key, value)
    np.testing.assert_allclose(
        attended.astype(jnp.float32), expected.astype(jnp.float32), atol=0.03
    )


def test_a_model_gives_its_attention_to_cudnn(monkeypatch):
    calls = []
    monkeypatch.setattr(on_gpu, "_attend", cudnn(calls))
    model = NesT(**SMALL, kernels="cudnn")
    images = jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert calls == []
    jax.eval_shape(model.apply, variables, images)
    assert calls == [(2 * 4, 16, 1, 16), (2, 16, 2, 16)]
