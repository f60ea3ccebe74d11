"""The commands of `nest-dist` and their flags, as `--help` lists them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag; `kind` names absl's definer: string, integer, multi_string or bool."""

    kind: str
    default: str | int | bool | None
    help: str


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: the module `nest_dist.commands.NAME` has its `run(options)`; - becomes _."""

    summary: str  # what it does, in a line
    flags: tuple[str, ...]
    arguments: str = ""  # description of `options.arguments`, those besides flags; empty for none


FLAGS = {
    "gin_file": Flag("multi_string", None, "configuration: a path or a shipped name; repeatable"),
    "gin_bindings": Flag("multi_string", None, "one binding, NAME.FIELD = VALUE; repeatable"),
    "workdir": Flag("string", None, "folder of the run: checkpoints, metrics, configuration"),
    "allow_config_change": Flag(
        "bool", False, "go on from a checkpoint that was made with another model, data or seed"
    ),
    "step": Flag("integer", None, "which checkpoint; without it the newest; of replay, any step"),
    "from": Flag("string", None, "format of IN: nest_dist, official or timm"),
    "to": Flag("string", None, "format of OUT: nest_dist, official or timm"),
    "average": Flag("bool", False, "writes the mean of the weights of several IN"),
    "checkpoint": Flag("string", None, "weights: a file, a workdir, or hf:OWNER/NAME of the Hub"),
    "format": Flag("string", "table", "table, json, or csv (evaluate and predict)"),
    "measures": Flag(
        "string",
        None,
        "beside loss and accuracy, with commas between: top_k, knn, few_shot, linear_probe, "
        "among_classes, right_labels, confusion",
    ),
    "output": Flag("string", None, "folder for what is written"),
    "images": Flag("integer", 8, "pictures on the contact sheet"),
    "batch_step": Flag("integer", 0, "of which step the batch is shown"),
    "class": Flag("string", None, "name or number of the one class; without it the five likeliest"),
    "class_names": Flag("string", None, "text file with one class name a line"),
    "split": Flag("string", None, "name of the split, such as train or validation"),
    "input_format": Flag("string", None, "folder, tar, parquet, tfds or idx; else recognised"),
    "labels": Flag("string", None, "text file with NAME CLASS a line, where no folders tell"),
    "label_separator": Flag(
        "string", None, "between several classes of a line of --labels; ?CLASS marks an unknown one"
    ),
    "image_column": Flag("string", "image", "column or feature with the picture (parquet, tfds)"),
    "label_column": Flag("string", "label", "column or feature with the class (parquet, tfds)"),
    "shards": Flag("integer", None, "number of files; without it one for each 256 MB"),
    "workers": Flag("integer", None, "processes; without it one for each core"),
    "restart_markers": Flag(
        "bool",
        False,
        "in JPEGs, by jpegtran, without loss: decoding a random crop is a third less work",
    ),
    "verify": Flag("bool", False, "reads a prepared split again and checks every record"),
    "topology": Flag(
        "string", None, "to compile for, as v5e:16x16 or h200:8; without it what is here"
    ),
    "slices": Flag("integer", 1, "of the topology, with a slow network between them"),
    "examples": Flag("integer", None, "in the training split, where the data is not here"),
    "core_images_per_second": Flag(
        "integer", None, "that a core of a host makes: inspect-data's 'one thread, in all'"
    ),
    "fit": Flag("bool", False, "searches the largest batch a device for each --remat"),
    "remat": Flag("multi_string", None, "for --fit: none, dots or layer; repeatable, else all"),
    "without_kernels": Flag(
        "bool", False, "also counts what layers would take without kernels, by the same bundles"
    ),
    "audit": Flag("bool", False, "only lists each parameter with its sharding and rule"),
    "license": Flag(
        "string", None, "of the weights, as the Hub writes it: apache-2.0, cc-by-4.0, other"
    ),
    "private": Flag("bool", False, "makes a repository that its owner alone sees"),
    "replace": Flag("bool", False, "adds a commit to a repository that has files already"),
    "keep": Flag("bool", False, "keeps the compiled step in --output, for train --compiled"),
    "example": Flag("string", None, "key or number of an example; lists the steps that saw it"),
    "search": Flag("string", None, "lists only names and meanings with this text"),
    "schedule": Flag("bool", False, "draws learning rate and EMA decay over the steps of the run"),
    "json": Flag("bool", False, "prints JSON"),
    "compiled": Flag("string", None, "folder of a step that rehearse --keep has compiled"),
    "coordinator": Flag("string", None, "host:port of process 0; without it JAX finds the peers"),
    "num_processes": Flag("integer", None, "processes of the run"),
    "process_id": Flag("integer", None, "number of this process, from 0"),
    "wait_seconds": Flag("integer", 300, "how long to wait for the other processes at the start"),
    "secret_file": Flag("string", None, "the secret of the run; else that of NEST_DIST_SECRET"),
    "insecure": Flag("bool", False, "several hosts without a secret: strangers can end the run"),
}
HOSTS = (
    *("coordinator", "num_processes", "process_id", "wait_seconds", "secret_file", "insecure"),
)
COMMANDS = {
    "train": Command(
        "trains a NesT, or goes on from the last checkpoint of its workdir",
        ("gin_file", "gin_bindings", "workdir", "allow_config_change", "compiled", *HOSTS),
    ),
    "rehearse": Command(
        "compiles a run's training step for absent TPUs or GPUs, and tells what it takes",
        (
            *("gin_file", "gin_bindings", "topology", "slices", "examples"),
            *("core_images_per_second", "without_kernels", "fit", "remat", "audit", "keep"),
            "output",
        ),
    ),
    "evaluate": Command(
        "measures a checkpoint of a workdir, or other weights, on its data or on any other",
        (
            *("workdir", "step", "checkpoint", "measures", "format", "output", "class_names"),
            *("gin_file", "gin_bindings", *HOSTS),
        ),
    ),
    "config": Command(
        "lists what can be configured, the values of a run and their origins, or a difference",
        ("gin_file", "gin_bindings", "workdir", "search", "schedule", "examples", "output", "json"),
        "[RUN | diff RUN RUN]",
    ),
    "inspect-data": Command(
        "draws what the pipeline makes of pictures, and tells its speed stage by stage",
        ("gin_file", "gin_bindings", "output", "images", "batch_step"),
    ),
    "replay": Command(
        "does the steps of a run up to --step again, and shows the batch of that step",
        ("step", "example", "output", "format", "gin_bindings", *HOSTS),
        "WORKDIR",
    ),
    "verify": Command("checks that every checkpoint of a run is what was saved", (), "WORKDIR"),
    "convert": Command(
        "brings weights from one format to another, without loss",
        ("from", "to", "step", "gin_bindings", "average"),
        "IN OUT | --average IN IN ... OUT",
    ),
    "predict": Command(
        "prints the most likely classes of pictures, and draws those it is least sure of",
        ("checkpoint", "step", "format", "class_names", "output", "images"),
        "IMAGES_OR_FOLDERS...",
    ),
    "explain": Command(
        "draws where in pictures the model finds the evidence for their classes",
        ("checkpoint", "step", "class", "output", "format", "class_names"),
        "IMAGES...",
    ),
    "prepare": Command(
        "writes pictures as sharded ArrayRecord: from folders, tar, Parquet, TFDS or IDX",
        (
            *("output", "split", "input_format", "labels", "class_names", "image_column"),
            *("label_column", "label_separator", "shards", "workers", "restart_markers", "verify"),
        ),
        "INPUT...",
    ),
    "export": Command(
        "writes a model as one StableHLO file that runs without nest_dist",
        ("checkpoint", "step"),
        "OUT",
    ),
    "push": Command(
        "publishes a run's weights, with a model card, on the Hugging Face Hub or in a folder",
        ("license", "step", "output", "private", "replace"),
        "WORKDIR OWNER/NAME",
    ),
}
