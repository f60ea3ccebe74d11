"""How XLA compiles a model for a GPU."""

# `jax.Device.platform` of a GPU that is here, and of one that is only compiled for.
PLATFORMS = ("gpu", "cuda")

# A run that is killed and resumed must end with the bits of an undisturbed one. So XLA leaves out
# sums in the order in which threads come, and chooses by rules instead of measuring (autotuning),
# which may choose otherwise at the next start. Source: openxla/xla, xla.proto, at this option.
COMPILER_OPTIONS = {"xla_gpu_deterministic_ops": True}
