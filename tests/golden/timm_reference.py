"""Logits of timm's NesT for fixed weights and images; run by hand, not in CI.

    python tests/golden/timm_reference.py

It needs, besides nest_dist, torch 2.13.0 (CPU) and timm 1.0.31:

    pip install torch==2.13.0 pyyaml pillow && pip install --no-deps timm==1.0.31

torchvision is not needed: timm imports it, but NesT does not use it, so a stand-in is enough.

It writes, beside itself,
- timm_reduced.safetensors: weights, images and logits of a `nest_tiny_jx` of reduced width and
  depth for images of 48 pixels;
- timm_logits.json: logits of the full `nest_tiny_jx` at 224 and at 96 pixels, whose weights are
  not stored but drawn again by `support.drawn` (they would be 68 MB);
- torch_checkpoint.pth: a checkpoint of a few small tensors, as PyTorch writes it;
and then checks that timm loads weights which nest_dist exports, strictly, and gives the same
logits; that a .pth file is read without PyTorch just as with it; and that PyTorch reads
safetensors which nest_dist writes.
"""

import json
import pathlib
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
REDUCED = {
    "img_size": 48,
    "embed_dims": (12, 24, 48),
    "num_heads": (3, 6, 12),
    "depths": (1, 1, 2),
    "num_classes": 10,
    "pad_type": "same",
}
FULL_SIDES = (224, 96)

sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]
from support import without_torchvision  # noqa: E402

without_torchvision.pretend()

import numpy as np  # noqa: E402
import safetensors.numpy  # noqa: E402
import safetensors.torch  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from support import drawn  # noqa: E402
from timm.models import nest as timm_nest  # noqa: E402

from nest_dist.base import tree_paths  # noqa: E402
from nest_dist.commands import cli  # noqa: E402
from nest_dist.pretrained import description, load  # noqa: E402
from nest_dist.pretrained.formats import safetensors_file, torch_file  # noqa: E402


def main() -> None:
    torch.set_grad_enabled(False)
    reduced = _filled(timm_nest.Nest(**REDUCED))
    weights = {name: leaf.numpy() for name, leaf in reduced.state_dict().items()}
    images = drawn.images("reduced", (2, 48, 48, 3))
    logits = _logits(reduced, images)
    safetensors.numpy.save_file(
        {**weights, "images": images, "logits": logits}, HERE / "timm_reduced.safetensors"
    )
    print("reduced: logits", logits.shape, "of size", np.abs(logits).max())

    full = {}
    for side in FULL_SIDES:
        model = _filled(timm.create_model("nest_tiny_jx", img_size=side))
        full[str(side)] = _logits(model, drawn.images(str(side), (1, side, side, 3))).tolist()
        print(f"nest_tiny_jx at {side}: logits of size", np.abs(full[str(side)]).max())
    (HERE / "timm_reduced.safetensors").chmod(0o644)
    (HERE / "timm_logits.json").write_text(json.dumps(full) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        _check_export(pathlib.Path(folder))
        _check_readers(pathlib.Path(folder), reduced)


def _filled(model):
    state = {
        name: torch.from_numpy(np.array(drawn.timm_weight(name, tuple(leaf.shape))))
        for name, leaf in model.state_dict().items()
    }
    model.load_state_dict(state, strict=True)
    return model.eval()


def _logits(model, images):
    return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def _check_export(folder: pathlib.Path) -> None:
    """Weights of nest_dist, exported by the command, loaded by timm strictly."""
    loaded = load.load("nest_tiny", image_size=96, gelu="exact")
    params = {
        name: 0.06 * drawn.array(name, leaf.shape) + (1 if name.endswith("scale") else 0)
        for name, leaf in tree_paths.flatten(loaded.variables["params"]).items()
    }
    metadata = description.texts(loaded.model)
    source, target = (str(folder / f"{form}.safetensors") for form in ("nest_dist", "timm"))
    safetensors_file.write(pathlib.Path(source), params, metadata)
    cli.main(["convert", "--from=nest_dist", "--to=timm", source, target])
    model = timm.create_model("nest_tiny_jx", img_size=96, checkpoint_path=target).eval()
    images = drawn.images("export", (1, 96, 96, 3))
    variables = {"params": tree_paths.unflatten(params)}
    expected = np.asarray(loaded.model.apply(variables, images))
    difference = np.abs(_logits(model, images) - expected).max()
    size = np.abs(expected).max()
    print(f"exported by us, loaded by timm: logits of size {size:.3f} differ by {difference:.1e}")
    assert difference < 1e-5


def _check_readers(folder: pathlib.Path, model) -> None:
    state = model.state_dict()
    small = {
        "module.transposed": torch.arange(6.0).reshape(2, 3).T,
        "module.half": torch.arange(6, dtype=torch.bfloat16)[2:],
        "module.parameter": torch.nn.Parameter(torch.ones(2)),
        "module.scalar": torch.tensor(7),
    }
    torch.save({"state_dict": small, "epoch": 3}, HERE / "torch_checkpoint.pth")
    wrapped = {"state_dict": {f"module.{name}": leaf for name, leaf in state.items()}, "epoch": 3}
    wrapped["state_dict"].update(small)
    torch.save(wrapped, folder / "checkpoint.pth")
    arrays, left_out = torch_file.read(folder / "checkpoint.pth")
    assert left_out == ("epoch",)
    for name, leaf in wrapped["state_dict"].items():
        leaf = leaf.detach()
        expected = leaf.float().numpy() if leaf.dtype == torch.bfloat16 else leaf.numpy()
        np.testing.assert_array_equal(
            arrays[name.removeprefix("module.")].astype(np.float32), expected
        )
    safetensors_file.write(folder / "a.safetensors", arrays, {"format": "pt"})
    again = safetensors.torch.load_file(folder / "a.safetensors")
    assert all(torch.equal(again[name], leaf) for name, leaf in state.items())
    print("PyTorch's own readers agree with nest_dist's")


if __name__ == "__main__":
    main()
