"""What a run is: the one root of every gin configuration, shared by all commands."""

import dataclasses

import gin

from nest_dist.base import checks, failures
from nest_dist.checkpointing import keep as keeping
from nest_dist.data import pipeline
from nest_dist.model import nest
from nest_dist.parallel import mesh as meshes
from nest_dist.parallel import rules
from nest_dist.train import erasing, guard, inputs, jitter
from nest_dist.train import mixing as mixings
from nest_dist.train import optimizer as optimizers
from nest_dist.train import pixels as pixel_scale


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Run:
    """A whole run, from data to optimizer; gin fills it in.

    Attributes:
        model: the network.
        training_data: where its examples come from.
        evaluation_data: on what it is measured.
        pixels: how images are normalised.
        optimizer: how parameters change.
        mesh: how devices are arranged.
        rules: which axes of the mesh share out which axes of arrays.
        num_epochs: passes over the training split; a fraction is fine.
        global_batch: examples a step, over all devices.
        evaluate_every_epochs: between two evaluations.
        save_every_epochs: between two checkpoints.
        init_from: weights to start from: a file, a workdir, or a repository of the Hugging Face
            Hub; where image or classes differ, position embeddings are resized and the head is
            initialised anew. None for first values.
        color_jitter: on the device, before normalisation; None leaves it out.
        random_erasing: on the device, after normalisation; None leaves it out.
        mixing: of pairs of examples, on the device; None leaves it out.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        microbatches: parts of a step's batch that are computed one after the other, to save
            memory, and on a TPU time; loss and gradients stay those of the whole.
        reproducible_reduction: whether gradients are summed so that parameters do not depend, to
            the last bit, on how many devices share the work; takes more memory and time.
        reduction_shards: of the batch in that sum, a power of two that the devices divide; the
            bits depend on it.
        ema_decay: of an average of the parameters, which is then what is evaluated and exported,
            in [0, 1); None keeps none.
        seed: of parameters, order, augmentation and dropout, in [0, 2**32).
        log_every_steps: steps whose metrics are averaged into one report.
        histograms_every_steps: between two reports of the distributions of parameters and
            gradients, a multiple of `log_every_steps`; None leaves them out.
        profile_first_step: of those that are traced for TensorBoard's profiler; None traces only
            when asked by SIGUSR1 or a file named `profile` in the workdir.
        profile_num_steps: in a trace.
        not_finite: what happens when a loss or an update is not finite.
        stuck_seconds: without a step, after which training is taken for stuck and ended.
        keep: which checkpoints stay.
    """

    model: nest.NesT
    training_data: pipeline.TrainingData
    evaluation_data: pipeline.EvaluationData
    pixels: pixel_scale.Pixels
    optimizer: optimizers.AdamW
    mesh: meshes.MeshShape
    rules: rules.Rules
    num_epochs: float
    global_batch: int
    evaluate_every_epochs: float
    save_every_epochs: float
    init_from: str | None = None
    color_jitter: jitter.ColorJitter | None = None
    random_erasing: erasing.RandomErasing | None = None
    mixing: mixings.Mixing | None = None
    label_smoothing: float = 0.0
    microbatches: int = 1
    reproducible_reduction: bool = False
    reduction_shards: int = 8
    ema_decay: float | None = None
    seed: int = 0
    log_every_steps: int = 50
    histograms_every_steps: int | None = None
    profile_first_step: int | None = None
    profile_num_steps: int = 5
    not_finite: guard.NotFinite = dataclasses.field(default_factory=guard.NotFinite)
    stuck_seconds: float = 600
    keep: keeping.Keep = dataclasses.field(default_factory=keeping.Keep)

    def __post_init__(self) -> None:
        checks.types(self)
        checks.in_range("Run.global_batch", self.global_batch, 1)
        checks.in_range("Run.label_smoothing", self.label_smoothing, 0, 1, open_high=True)
        checks.in_range("Run.microbatches", self.microbatches, 1)
        checks.in_range("Run.reduction_shards", self.reduction_shards, 1)
        if self.ema_decay is not None:
            checks.in_range("Run.ema_decay", self.ema_decay, 0, 1, open_high=True)
        checks.in_range("Run.seed", self.seed, 0, 2**32 - 1)
        checks.in_range("Run.log_every_steps", self.log_every_steps, 1)
        checks.in_range("Run.profile_num_steps", self.profile_num_steps, 1)
        if self.profile_first_step is not None:
            checks.in_range("Run.profile_first_step", self.profile_first_step, 1)
        if (every := self.histograms_every_steps) is not None:
            checks.in_range("Run.histograms_every_steps", every, 1)
            checks.divides(
                "Run.histograms_every_steps",
                every,
                self.log_every_steps,
                "Run.log_every_steps",
                "change either",
            )
        checks.in_range("Run.stuck_seconds", self.stuck_seconds, 1)
        for name in ("num_epochs", "evaluate_every_epochs", "save_every_epochs"):
            if (value := getattr(self, name)) <= 0:
                raise failures.BadInput(f"Run.{name} is {value}; it must be above 0.")

    def inputs(self) -> inputs.Inputs:
        """From the bytes on the wire to what the model is trained on."""
        return inputs.Inputs(self.pixels, self.color_jitter, self.random_erasing, self.mixing)
