"""Whether the kernels for TPUs serve a model on a mesh."""

import dataclasses

import jax

from nest_dist.base import failures
from nest_dist.model import encoder, nest
from nest_dist.model.kernels import attention, call, mlp
from nest_dist.sharding import rules

# Kinds of devices for which nobody has compiled the kernels.
OLD = ("TPU v2", "TPU v3")
# Values of jax_default_matmul_precision with which a TPU multiplies in bfloat16, as the kernels do.
FAST = (None, "default", "fastest", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Choice:
    """The form of a model's layers, "fused" or "plain", and the reason as a clause."""

    form: encoder.Kernels
    reason: str

    def __str__(self) -> str:
        return f"kernels: {self.form}, since {self.reason}"


def choose(model: nest.NesT, sharding: rules.ShardingContext) -> Choice:
    """The form in which the layers of a model run on a mesh.

    Raises:
        BadInput: if `NesT.kernels` is "fused" where the kernels do not serve.
    """
    if model.kernels == "plain":
        return Choice("plain", "NesT.kernels is 'plain'")
    if (obstacle := _obstacle(model, sharding)) is None:
        return Choice("fused", "devices, mesh and model allow it")
    reason, remedy = obstacle
    if model.kernels == "fused":
        raise failures.BadInput(
            f"NesT.kernels is 'fused', but {reason}; {remedy}set it to 'auto' or 'plain'."
        )
    return Choice("plain", reason)


def _obstacle(model: nest.NesT, sharding: rules.ShardingContext) -> tuple[str, str] | None:
    """Why the kernels do not serve, as a clause, and what would help, ending in "or "."""
    device = sharding.mesh.devices.flat[0]
    kind = f"the devices are of the kind {device.device_kind}"
    if device.platform != "tpu" and not call.is_interpreted():
        return f"{kind}, and the kernels are for TPUs", ""
    if device.device_kind in OLD:
        return f"{kind}, and the kernels are for v4 and newer", ""
    if (shards := sharding.shards("heads")) > 1:
        return f"heads lie on {shards} devices", "set MeshShape.tensor to 1, or "
    if model.multi_query:
        return "the model has one key and value head", ""
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
    N = model.geometry().block_side ** 2
    for C in model.widths():
        for name, needed in (
            ("attention", attention.memory(N, C, C // D)),
            ("MLP", mlp.memory(N, C, model.mlp_ratio * C)),
        ):
            if needed > call.MEMORY:
                block = f"{name} in a block of {N} tokens of {C} channels"
                limit = f"a kernel has {call.MEMORY / 1e6:,.1f}"
                reason = f"{block} needs {needed / 1e6:,.1f} MB of VMEM, {limit}"
                return reason, "set a smaller NesT.block_side or NesT.dim, or "
    return None
