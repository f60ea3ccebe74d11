"""What a run is: the one root of every gin configuration, nested by topic."""

import dataclasses
import re
import typing
from collections.abc import Sequence

import gin

from nest_dist.base import checks, failures, lengths, settings
from nest_dist.base.checks import Within
from nest_dist.base.settings import Effect, means
from nest_dist.checkpointing import retention
from nest_dist.config import strict_gin
from nest_dist.data import pipeline
from nest_dist.experiment import binding_names
from nest_dist.model import nest
from nest_dist.sharding import mesh as meshes
from nest_dist.sharding import rules as sharding_rules
from nest_dist.telemetry import trackers
from nest_dist.train import clipping as clippings
from nest_dist.train import early_stopping as stopping
from nest_dist.train import evaluators, objectives, parameter_rules, schedules
from nest_dist.train import inputs as input_transforms
from nest_dist.train import optimizer as optimizers
from nest_dist.train import spikes as spike_rules
from nest_dist.train.objectives import pretext

_Length = typing.Annotated[lengths.Length, lengths.Within(0, open_low=True)]
_NAME = re.compile(r"[A-Za-z0-9][\w-]*", re.ASCII)


@settings.register
class NonFinite:
    """The reaction of a run to a loss, gradient or update that is not finite.

    Attributes:
        policy: "stop" ends the run. "skip" discards the update and continues with the next batch.
            "rewind" restores the newest checkpoint and leaves out the batches from its step to the
            bad one.
        limit: of skips or rewinds since the program started; one more ends the run.
    """

    policy: typing.Literal["stop", "skip", "rewind"] = "stop"
    limit: typing.Annotated[int, Within(1)] = means(Effect.CHANGES, in_step=False, default=10)


@settings.register
class Step:
    """What a training step computes; see `train.step.TrainStep`.

    Attributes:
        inputs: from uint8 images to the inputs of the model.
        objective: loss and metrics.
        optimizer: from gradients to updates.
        schedule: the learning rate over the run.
        parameters: learning rate, weight decay and freezing by names of parameters.
        nonfinite: the reaction to a loss or an update that is not finite.
        clipping: of gradients, before the optimizer; None clips nothing.
        spikes: leaves out steps far above the recent ones; None leaves out none.
        microbatches: shards of a batch that are computed one after the other. They save memory, and
            on a TPU time; loss and gradients are those of the batch.
        reproducible_reduction: whether gradients are summed in an order that the number of devices
            does not change, so that parameters agree to the last bit. Takes memory and time.
        reduction_shards: of the batch in that sum, a power of two that the devices divide; the
            bits depend on it.
        ema_decay: of the moving average of the parameters, in [0, 1). The average is evaluated and
            exported instead of the parameters; None computes none.
    """

    inputs: input_transforms.Inputs
    objective: objectives.Objective | pretext.Pretext
    optimizer: optimizers.Optimizer
    schedule: schedules.Schedule
    parameters: parameter_rules.ParameterRules
    nonfinite: NonFinite
    clipping: clippings.Clipping | None = None
    spikes: spike_rules.SpikeRule | None = None
    microbatches: typing.Annotated[int, Within(1)] = 1
    reproducible_reduction: bool = False
    reduction_shards: typing.Annotated[int, Within(1)] = 8
    ema_decay: typing.Annotated[float, Within(0, 1, open_high=True)] | None = None


@settings.register
class Evaluation:
    """One data set on which the run is measured.

    Attributes:
        data: its examples.
        every_epochs: of training, between two evaluations; also "500 steps", or "5%" of the run.
        name: its metrics are `eval/NAME/...`; those of the one without a name are `eval/...`.
        of_objective: whether loss and metrics of the run's objective are measured.
        measures: beside the objective, such as (@KNearest(), @Confusion()).
        reference: the examples from which measures learn; None for the training split of the run,
            transformed as `data`.
    """

    data: pipeline.EvaluationData
    every_epochs: _Length
    name: str = ""
    of_objective: bool = True
    measures: tuple[evaluators.Measure, ...] = ()
    reference: pipeline.EvaluationData | None = None

    def __post_init__(self) -> None:
        if self.name and not _NAME.fullmatch(self.name):
            raise failures.BadInput(
                f"Evaluation.name is {self.name!r}; give a word of letters, digits, - and _."
            )
        if not (self.of_objective or self.measures):
            raise failures.BadInput(
                "Evaluation.of_objective is False and Evaluation.measures is empty, which measures "
                "nothing; set one of them."
            )
        evaluators.require_distinct(f"Evaluation {self.name!r}", self.measured())

    @property
    def split(self) -> str:
        """The name of its split; "evaluation" where the source has no names for splits."""
        return getattr(self.data.source, "split", "") or "evaluation"

    @property
    def prefix(self) -> str:
        """With which the names of its metrics begin."""
        return f"eval/{self.name}/" if self.name else "eval/"

    @property
    def learns(self) -> bool:
        """Whether a measure learns from the reference examples."""
        return any(measure.learns for measure in self.measures)

    def judges_classes(self, objective: objectives.Objective | pretext.Pretext) -> bool:
        """Whether the classes of its data must be those of the model.

        An objective that needs nothing beside images has none.
        """
        judged = self.of_objective and bool(objective.needs)
        return judged or any(measure.uses_head for measure in self.measures)

    def measured(self) -> list[str]:
        """The metrics of its measures."""
        return [f"{self.prefix}{name}" for each in self.measures for name in each.metrics()]


@settings.register
class Cadence:
    """How often a run reports and saves.

    Attributes:
        save_every_epochs: between two checkpoints; also "500 steps", or "5%" of the run.
        log_every_steps: steps whose metrics are averaged into one report.
        histograms_every_steps: between two reports of the distributions of parameters and
            gradients, a multiple of `log_every_steps`; None leaves them out.
        profile_first_step: of those that are traced for TensorBoard's profiler; None traces only
            when asked by SIGUSR1 or a file named `profile` in the workdir.
        profile_num_steps: in a trace.
    """

    save_every_epochs: _Length
    log_every_steps: typing.Annotated[int, Within(1)] = 50
    histograms_every_steps: typing.Annotated[int, Within(1)] | None = means(
        Effect.NONE, in_step=True, default=None
    )
    profile_first_step: typing.Annotated[int, Within(1)] | None = None
    profile_num_steps: typing.Annotated[int, Within(1)] = 5

    def __post_init__(self) -> None:
        if self.histograms_every_steps is not None:
            checks.divides(
                "Cadence.histograms_every_steps",
                self.histograms_every_steps,
                self.log_every_steps,
                "Cadence.log_every_steps",
                "change either",
            )


@settings.register
class Watch:
    """What ends a run that cannot go on: no progress, or a device that computes wrongly.

    Attributes:
        stuck_seconds: without a step, after which training counts as stuck.
        compare_every_steps: steps between two comparisons of the parameters' replicas, which also
            precede each checkpoint; None compares nothing. A flipped bit that the next updates
            round away has left them equal by then.
        repeat_every_steps: steps between two that are done twice, whose results must have the same
            bits. It needs memory for a second state; None repeats no step.
    """

    stuck_seconds: typing.Annotated[float, Within(1)] = 600
    compare_every_steps: typing.Annotated[int, Within(1)] | None = None
    repeat_every_steps: typing.Annotated[int, Within(1)] | None = None


@gin.configurable
@settings.frozen
class Run:
    """A run, from data to optimizer: the root of the configuration, made by gin.

    Attributes:
        model: the network.
        step: what a training step computes.
        data: its training examples.
        evaluations: data sets on which the run is measured, at least one; what concerns only one
            of them means the first.
        mesh: how devices are arranged.
        rules: the mesh axes that shard each logical axis of an array.
        num_epochs: passes over the training split; a fraction is fine, and so is "500 steps".
        global_batch: examples a step, over all devices.
        cadence: how often the run reports and saves.
        checkpoints: which of them are retained.
        tracker: a service beside TensorBoard, such as @WeightsAndBiases(); None writes to none.
        early_stopping: ends the run once its evaluations improve no more; None never does.
        watch: what ends a run that cannot go on.
        init_from: weights to start from: a file, a workdir, or hf:OWNER/NAME of the Hugging Face
            Hub. Position embeddings are resized to another image size; for other channels the first
            convolution is adapted, for other classes the head is new. None initializes all
            parameters.
        new_head: of weights to start from, for other classes: "random" initializes it like all
            others, "zeros" begins at zero, as the official fine-tuning does.
        seed: of parameters, order, augmentation and dropout, in [0, 2**32).
    """

    model: nest.NesT = means(Effect.ANOTHER_RUN)
    step: Step
    data: pipeline.TrainingData = means(Effect.ANOTHER_RUN, in_step=False)
    evaluations: tuple[Evaluation, ...] = means(Effect.NONE, in_step=False, throughout=True)
    mesh: meshes.MeshShape = means(Effect.NONE)
    rules: sharding_rules.Rules = means(Effect.NONE)
    num_epochs: typing.Annotated[lengths.Length, lengths.Within(0, open_low=True, share=False)]
    global_batch: typing.Annotated[int, Within(1)] = means(Effect.ANOTHER_RUN)
    cadence: Cadence = means(Effect.NONE, in_step=False)
    checkpoints: retention.Retention = means(Effect.NONE, in_step=False)
    watch: Watch = means(Effect.NONE, in_step=False)
    early_stopping: stopping.EarlyStopping | None = means(
        Effect.CHANGES, in_step=False, default=None
    )
    tracker: trackers.Tracker | None = means(Effect.NONE, in_step=False, default=None)
    # A run that resumes does not read it.
    init_from: str | None = means(Effect.NONE, in_step=False, default=None)
    new_head: typing.Literal["random", "zeros"] = means(
        Effect.NONE, in_step=False, default="random"
    )
    seed: typing.Annotated[int, Within(0, 2**32 - 1)] = means(Effect.ANOTHER_RUN, default=0)

    def __post_init__(self) -> None:
        if not self.evaluations:
            raise failures.BadInput(
                "Run.evaluations has no members; give one, as in Run.evaluations = "
                "(@Evaluation(),)."
            )
        names = [evaluation.name for evaluation in self.evaluations]
        if twice := [name for number, name in enumerate(names) if name in names[:number]]:
            raise failures.BadInput(
                f"two of Run.evaluations have the name {twice[0]!r}; give each a name of its own, "
                "as in real/Evaluation.name = 'real'."
            )
        evaluators.require_distinct("Run.evaluations", self._measured())

    @property
    def evaluation(self) -> Evaluation:
        """The first one."""
        return self.evaluations[0]

    def _measured(self) -> list[str]:
        return [metric for evaluation in self.evaluations for metric in evaluation.measured()]


def without_head(run: Run) -> Run:
    """The run with a model of no classes, if its objective learns without labels."""
    if not isinstance(run.step.objective, pretext.Pretext) or run.model.num_classes == 0:
        return run
    return dataclasses.replace(run, model=run.model.clone(num_classes=0))


def with_counted_classes(run: Run, count: int) -> Run:
    """The run with `count` classes, if `NesT.num_classes` is None."""
    if run.model.num_classes is not None:
        return run
    return dataclasses.replace(run, model=run.model.clone(num_classes=count))


def parse(gin_files: Sequence[str], gin_bindings: Sequence[str]) -> tuple[Run, str]:
    """The run that files and bindings describe, and its operative configuration as gin.

    `gin/run.gin` comes first: it binds every topic, so that any field of it can be bound alone.
    See `strict_gin.parse`.
    """
    return strict_gin.parse(Run, "run.gin", gin_files, gin_bindings, binding_names.ALL)


def load(gin_files: Sequence[str], gin_bindings: Sequence[str]) -> Run:
    """As `parse`, without the operative configuration."""
    return parse(gin_files, gin_bindings)[0]
