"""The teacher of a run: its weights on the host, what they fit, and their shards on the mesh."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import failures, tree_paths
from nest_dist.config import run_json
from nest_dist.data import classes
from nest_dist.experiment import run as runs
from nest_dist.model import fused, nest, parameters
from nest_dist.sharding import rules
from nest_dist.train import inputs, state, teacher
from nest_dist.train.objectives import distillation


@dataclasses.dataclass(frozen=True, eq=False)
class TeacherWeights:
    """Trained weights, read for the images of a run."""

    source: str
    model: nest.NesT  # with the image of the run
    params: Mapping[str, np.ndarray]  # flat, float32
    normalize: inputs.Normalize
    class_names: tuple[str, ...]  # of its outputs; empty if they are not known

    def __str__(self) -> str:
        count = sum(leaf.size for leaf in self.params.values())
        names = "named" if self.class_names else "unnamed"
        return f"{self.source}: {count:,} parameters, {self.model.num_classes} {names} classes"

    @functools.cached_property
    def digest(self) -> str:
        """Identifies the teacher: its weights, and all that its outputs depend on."""
        digest = hashlib.sha256(repr((self.document, self.class_names)).encode())
        for name in sorted(self.params):
            digest.update(np.ascontiguousarray(self.params[name]).data)
        return digest.hexdigest()[:16]

    @property
    def document(self) -> run_json.Json:
        """What the compiled step depends on, as JSON."""
        return [run_json.dump(self.model), run_json.dump(self.normalize)]

    def columns(self, class_names: Sequence[str]) -> tuple[int, ...]:
        """The output for each class of the data, by name where the teacher's are known."""
        count = self.model.num_logits
        if self.class_names and class_names:
            remedy = "give a teacher that knows each class of the data"
            return classes.table(class_names, self.class_names, "Distillation.teacher", remedy)
        if class_names and len(class_names) != count:
            raise failures.BadInput(
                f"Distillation.teacher is {self.source}, whose {count} classes have no names, and "
                f"the data has {len(class_names)}; give a teacher of these classes."
            )
        return tuple(range(count))


# From a run to the weights of its teacher.
Load = Callable[[runs.Run], TeacherWeights]


@dataclasses.dataclass(frozen=True, eq=False)
class OnMesh:
    """A teacher as the step of a run computes it."""

    weights: TeacherWeights
    config: distillation.Distillation
    sharding: rules.ShardingContext  # mesh and rules, the same as for the model that learns

    @functools.cached_property
    def model(self) -> nest.NesT:
        """In the type that is asked for, without what serves training alone."""
        model = self.weights.model.clone(
            compute_dtype=self.config.teacher_dtype, kernels="auto", remat="none"
        )
        return model.clone(kernels=fused.choose(model, self.sharding).form)

    def build(
        self, normalize: inputs.Normalize, class_names: Sequence[str], num_classes: int
    ) -> teacher.Teacher:
        """For a model with these images and classes."""
        columns = self.weights.columns(class_names)
        if len(columns) != num_classes:  # where the data is absent
            raise failures.BadInput(
                f"Distillation.teacher is {self.weights.source} with {len(columns)} classes, "
                f"NesT.num_classes is {num_classes}; give a teacher of these classes."
            )
        return teacher.Teacher(self.model, self.weights.normalize, normalize, columns)

    @functools.cached_property
    def shapes(self) -> state.Params:
        """Shapes, types and shardings of the parameters."""
        shapes = {
            name: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(self.config.teacher_dtype))
            for name, leaf in self.weights.params.items()
        }
        tree = tree_paths.unflatten(shapes)
        axes = parameters.of_model(self.model.num_hierarchies, self.model.num_logits)
        sharded = rules.sharded_shapes(self.sharding, {"params": tree}, axes)
        return sharded["params"]

    def params(self) -> state.Params:
        """The parameters, each device with its shards."""
        return rules.on_devices(self.shapes, self.weights.params)


def read(run: runs.Run, load: Load | None, sharding: rules.ShardingContext) -> OnMesh | None:
    """The teacher of a run whose objective has one.

    Raises:
        BadInput: if its images have other channels, or it has no head.
    """
    config = run.step.objective
    if not isinstance(config, distillation.Distillation):
        return None
    assert load is not None
    weights = load(run)
    channels, wanted = weights.model.num_channels, run.model.num_channels
    if channels != wanted:
        raise failures.BadInput(
            f"Distillation.teacher is {weights.source}, for images of {channels} channels, and "
            f"NesT.num_channels is {wanted}; give a teacher for these images."
        )
    if not weights.model.num_logits:
        raise failures.BadInput(
            f"Distillation.teacher is {weights.source}, which has no head; give a model of the "
            "classes of the data."
        )
    return OnMesh(weights, config, sharding)
