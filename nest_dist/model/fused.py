"""Which kernels serve a model on a mesh: ours on TPUs, cuDNN's attention on GPUs."""

import dataclasses
import math

import jax

from nest_dist.base import failures
from nest_dist.model import encoder, nest, on_gpu
from nest_dist.model.kernels import attention, call, mlp
from nest_dist.sharding import rules

# Kinds of devices for which nobody has compiled the kernels.
OLD = ("TPU v2", "TPU v3")
# Values of jax_default_matmul_precision with which a TPU multiplies in bfloat16, as the kernels do.
FAST = (None, "default", "fastest", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Choice:
    """The form of a model's layers, all but "auto", and the reason as a clause."""

    form: encoder.Kernels
    reason: str

    def __str__(self) -> str:
        return f"kernels: {self.form}, since {self.reason}"


def choose(model: nest.NesT, sharding: rules.ShardingContext) -> Choice:
    """The form in which the layers of a model run on a mesh.

    Raises:
        BadInput: if `NesT.kernels` is "fused" or "cudnn" where these kernels do not serve.
    """
    if model.kernels == "plain":
        return Choice("plain", "NesT.kernels is 'plain'")
    device = sharding.mesh.devices.flat[0]
    form: encoder.Kernels
    if device.platform in on_gpu.PLATFORMS:
        form, obstacle = "cudnn", _obstacle_on_gpu(model, device)
    elif model.kernels == "cudnn":
        form, obstacle = "cudnn", (f"the devices are of the kind {device.device_kind}", "")
    else:
        form, obstacle = "fused", _obstacle_on_tpu(model, sharding)
    if obstacle is None:
        return Choice(form, "devices, mesh and model allow it")
    reason, remedy = obstacle
    if model.kernels != "auto":
        raise failures.BadInput(
            f"NesT.kernels is {model.kernels!r}, but {reason}; {remedy}set it to 'auto' or 'plain'."
        )
    return Choice("plain", reason)


def _obstacle_on_gpu(model: nest.NesT, device: jax.Device) -> tuple[str, str] | None:
    """As `_obstacle_on_tpu`, for cuDNN's attention."""
    if model.compute_dtype != "bfloat16":
        reason = f"NesT.compute_dtype is {model.compute_dtype!r}, and cuDNN attends in 'bfloat16'"
        return reason, "set that, or "
    if model.multi_query:
        return "the model has one key and value head", ""
    if rate := model.attention_dropout:
        return f"NesT.attention_dropout is {rate}", "set it to 0, or "
    tokens = model.geometry().block_side ** 2
    refusal = on_gpu.obstacle(device, tokens, model.dim // model.heads)
    return (refusal, "") if refusal else None


def _obstacle_on_tpu(model: nest.NesT, sharding: rules.ShardingContext) -> tuple[str, str] | None:
    """Why our kernels do not serve, as a clause, and what would help, ending in "or "."""
    device = sharding.mesh.devices.flat[0]
    kind = f"the devices are of the kind {device.device_kind}"
    if device.platform != "tpu" and not call.is_interpreted():
        return f"{kind}, and the kernels are for TPUs", ""
    if device.device_kind in OLD:
        return f"{kind}, and the kernels are for v4 and newer", ""
    if (shards := sharding.shards("heads")) > 1:
        return f"heads lie on {shards} devices", "set MeshShape.tensor to 1, or "
    if model.gelu == "exact":
        return "the GELU is exact", "set NesT.gelu to 'tanh', or "
    for name in ("attention_dropout", "projection_dropout"):
        if rate := getattr(model, name):
            return f"NesT.{name} is {rate}", "set it to 0, or "
    if (precision := jax.config.values["jax_default_matmul_precision"]) not in FAST:
        return f"products are computed in {precision}", ""
    if (D := model.dim // model.heads) not in attention.HEADS:
        few = ", ".join(map(str, attention.HEADS))
        return f"heads have {D} channels, not {few}", "change NesT.heads, or "
    geometry = model.geometry()
    for C, blocks in zip(model.widths(), geometry.grids, strict=True):
        N = geometry.block_side**2
        N *= call.merged(math.prod(blocks), N)
        for name, needed in (
            ("attention", attention.memory(N, C, C // D)),
            ("MLP", mlp.memory(N, C, model.mlp_ratio * C)),
        ):
            if needed > (limit := call.memory_limit(device.device_kind)):
                block = f"{name} in a block of {N} tokens of {C} channels"
                has = f"a kernel has {limit / 1e6:,.1f} on this kind"
                reason = f"{block} needs {needed / 1e6:,.1f} MB of VMEM, {has}"
                return reason, "set a smaller NesT.block_side or NesT.dim, or "
    return None
