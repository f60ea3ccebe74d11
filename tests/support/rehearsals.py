"""A run to rehearse."""

# NesT with the recipe for ImageNet, without ImageNet, and small enough to compile in seconds.
SMALL = (
    "NesT.image_size = 16",
    "NesT.patch_size = 2",
    "NesT.block_side = 2",
    "NesT.dim = 8",
    "NesT.heads = 2",
    "NesT.num_hierarchies = 2",
    "NesT.block_repeats = (1, 1)",
    "NesT.compute_dtype = 'bfloat16'",
    "num_classes = 5",
    "Run.global_batch = 32",
    "Step.microbatches = 1",
)
FILES = ("runs/nest_tiny_imagenet.gin", "mesh/fsdp.gin")

README = (
    ".venv/bin/nest-dist rehearse --gin_file=runs/nest_tiny_imagenet.gin --topology=v5e:2x2 "
    '--gin_bindings="Run.global_batch = 256"'
)
