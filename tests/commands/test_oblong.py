"""A NesT for images of 96 x 160 pixels: trained, resumed, exported and read back."""

import jax
import numpy as np
import pytest
from PIL import Image
from support import commands, photographs

import nest_dist
from nest_dist.base import tree_paths
from nest_dist.commands import export
from nest_dist.model import patching

pytestmark = pytest.mark.slow

RUN = """
include 'data/image_folder.gin'
include 'model/nest_micro.gin'
include 'recipe/photographs.gin'
include 'mesh/data_parallel.gin'
data_folder = {folder!r}
num_classes = None
NesT.num_channels = 3
NesT.image_size = (96, 160)
NesT.dim = 8
NesT.heads = 1
NesT.block_repeats = (1, 1)
RandomResizedCrop.side = (96, 160)
RandomResizedCrop.antialias = True
ResizedCentreCrop.side = (96, 160)
ResizedCentreCrop.shorter_side = (96, 160)
ResizedCentreCrop.antialias = True
RandAugment.translation = 20
Run.num_epochs = 1
Run.global_batch = 4
Cosine.warmup_epochs = 0.5
Cadence.log_every_steps = 1
Evaluation.every_epochs = 1
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a run that was stopped after an epoch, and went on for another one."""
    root, exif = tmp_path_factory.mktemp("oblong"), Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "validation"):
        for name in ("chelsea", "coffee"):
            for number in range(4):
                # Stored lying on its side, as by a telephone.
                image = np.rot90(photographs.photograph(name)[:200, number : 300 + number])
                path = root / "pictures" / split / name / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path, quality=95, exif=exif)
    (root / "run.gin").write_text(RUN.format(folder=str(root / "pictures")))
    flags = [f"--workdir={root / 'run'}", f"--gin_file={root / 'run.gin'}"]
    for more in ((), ("--gin_bindings=Run.num_epochs = 2",)):
        commands.nest_dist("train", *flags, *more, succeeds=True)
    return root / "run"


def test_it_goes_on_from_its_checkpoint_and_learns(workdir):
    losses = commands.losses(workdir)
    assert sorted(losses) == [1, 2, 3, 4]
    assert np.isfinite(list(losses.values())).all()
    assert [line["step"] for line in commands.evaluations(workdir)] == [2, 4]


def test_it_is_read_back_with_its_blocks_and_tables(workdir):
    loaded = nest_dist.load(workdir)
    assert loaded.model.geometry() == patching.Geometry((96, 160), 4, ((6, 10), (3, 5)))
    params = tree_paths.flatten(loaded.variables["params"])
    assert params["levels_0/position_embedding"].shape == (1, 60, 16, 8)
    pictures = sorted((workdir.parent / "pictures").glob("validation/*/*.jpg"))
    seen = loaded.preprocess.images(pictures)
    # Upright, as they were before they were stored: the middle of 200 x 300 pixels.
    chelsea = Image.fromarray(photographs.photograph("chelsea")[10:190, :300])
    wanted = np.asarray(chelsea.resize((160, 96), Image.Resampling.BOX)).astype(int)
    assert np.abs(seen[0] - wanted).mean() < 3
    assert loaded.features(pictures, level=0).shape == (8, 24, 40, 8)
    larger = nest_dist.load(workdir, image_size=(192, 160))
    assert larger.logits(np.zeros((1, 192, 160, 3), np.float32)).shape == (1, 2)
    assert "resized to another image: levels_0/position_embedding" in larger.notes[-1]


def test_the_exported_program_gives_the_same_logits(workdir):
    loaded = nest_dist.load(workdir)
    program = jax.export.deserialize(export.exported(loaded).serialize())
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 160, 3), np.uint8)
    np.testing.assert_allclose(
        program.call(images), loaded.logits(loaded.preprocess.normalize(images)), atol=1e-5
    )
