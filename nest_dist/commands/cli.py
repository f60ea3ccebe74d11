"""The program `nest-dist`: its commands, their flags, and how each of them ends."""

import contextlib
import dataclasses
import gc
import importlib
import io
import logging
import os
import resource
import sys
import traceback
import types
import typing
from collections.abc import Sequence

from absl import flags
from absl import logging as absl_logging

from nest_dist.base import checks, failures
from nest_dist.cluster import stop_signals

# A namespace with one attribute for each flag of the command.
Options = types.SimpleNamespace


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
# Of this process, where the system allows so many; the soft limit of most systems is 1024.
OPEN_FILES = 1 << 16
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


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and ends the process with the exit code of its outcome."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    message = ""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no UTF-8
    try:
        code = _run(arguments)
    except KeyboardInterrupt:
        message, code = "nest-dist: interrupted\n", failures.INTERRUPTED
    except Exception as error:
        failure = failures.known(error)
        if isinstance(failure, failures.Failure):
            message, code = f"nest-dist: {failures.first_line(failure)}\n", failure.exit_code
        else:
            message, code = traceback.format_exc(), 1
    with contextlib.suppress(OSError):  # a log on a full disk must not change the exit code
        sys.stderr.write(message)
        sys.stderr.flush()
        sys.stdout.flush()
    if code:
        # The exit handlers of JAX would wait for peers that may be gone.
        failures.end_now(code)


def hosts(options: Options) -> dict[str, typing.Any]:
    """What a command knows of the other processes, as arguments of `Supervisor.start`."""
    return {name: getattr(options, name) for name in HOSTS}


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else failures.USAGE
    name, *rest = arguments
    if name == "--version":
        print(importlib.import_module("nest_dist").__version__)
        return 0
    checks.one_of("the command", name, COMMANDS)
    values = _flag_values(COMMANDS[name])
    if {"-h", "--help", "-help"} & set(rest):
        print(_help(name, COMMANDS[name]))
        return 0
    try:
        _, *others = values([name, *rest])
    except flags.UnrecognizedFlagError as error:
        raise failures.BadInput(_unknown_flag(name, error.flagname, error)) from None
    except flags.Error as error:
        raise failures.BadInput(f"{name}: {failures.first_line(error)}") from None
    if others and not COMMANDS[name].arguments:
        raise failures.BadInput(
            f"{name} takes flags only, not {others[0]!r}; write --flag=VALUE, in quotes where "
            "the value has spaces."
        )
    os.getcwd()  # where there is none, libraries fail later, each in its own way
    texts = (flag for flag in COMMANDS[name].flags if FLAGS[flag].kind == "string")
    empty = [f"--{flag}" for flag in texts if values[flag].value == ""]
    if "" in others or empty:  # as of a variable of the shell that is not set
        raise failures.BadInput(
            f"{name} got {empty[0] if empty else 'an argument'} without a text; give one, or leave "
            "it out."
        )
    # Grain reads absl's global flags, which must be marked as parsed; we define none of them.
    flags.FLAGS.mark_as_parsed()
    # Log lines of XLA and Orbax are for their developers; TF_CPP_MIN_LOG_LEVEL shows XLA's.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, OPEN_FILES)), hard))
    # What they call errors is raised, too.
    absl_logging.set_verbosity(absl_logging.FATAL)
    for library in ("asyncio", "concurrent.futures"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    chosen = {flag: values[flag].value for flag in COMMANDS[name].flags}
    # gin takes bytes that are no UTF-8, as in a path, only as it would write them itself.
    chosen["gin_bindings"] = [_escaped(text) for text in chosen.get("gin_bindings") or ()]
    options = Options(**chosen, arguments=others)
    if "process_id" not in COMMANDS[name].flags:
        stop_signals.release()  # without a supervisor, which would serve them
    # What imports make stays, and the collector would go through all of it again and again.
    gc.disable()
    command = importlib.import_module(f"nest_dist.commands.{name.replace('-', '_')}")
    gc.freeze()
    gc.enable()
    if "jax" in sys.modules:
        importlib.import_module("nest_dist.cluster.jax_private").forget_absent_tpus()
    command.run(options)
    return 0


def _unknown_flag(name: str, flag: str, error: flags.Error) -> str:
    """Of a flag that a command has not: similar ones, or the bindings that it may stand for."""
    said = f"{name}: {failures.first_line(error)}"
    if "gin_bindings" not in COMMANDS[name].flags or "Did you mean" in said:
        return said
    importlib.import_module("nest_dist.experiment.run")  # whose import registers what can be bound
    bindings = importlib.import_module("nest_dist.experiment.binding_names").bindings_like(flag)
    meant = f"as in {' or '.join(bindings)} = VALUE" if bindings else "NAME.FIELD = VALUE"
    return f"{name} has no flag --{flag}; a value of the run is given to --gin_bindings, {meant}."


def _escaped(text: str) -> str:
    return "".join(f"\\u{ord(it):04x}" if "\ud800" <= it <= "\udfff" else it for it in text)


def _flag_values(command: Command) -> flags.FlagValues:
    values = flags.FlagValues()
    values.set_gnu_getopt()  # flags may also follow arguments
    for name in command.flags:
        flag = FLAGS[name]
        define = getattr(flags, f"DEFINE_{flag.kind}")
        define(name, flag.default, flag.help, flag_values=values)
    return values


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "nest-dist COMMAND [--flag=VALUE ...]; multi-host pretraining of NesT in JAX",
            *lines,
            "`nest-dist COMMAND --help` lists the flags of a command.",
        ]
    )


def _help(name: str, command: Command) -> str:
    width = max(map(len, command.flags), default=0)
    usage = " ".join(filter(None, [name, command.arguments]))
    lines = [f"nest-dist {usage}: {command.summary}"]
    for name in command.flags:
        flag = FLAGS[name]
        default = "" if flag.default is None else f" (default {flag.default})"
        lines.append(f"  --{name:<{width}}  {flag.help}{default}")
    return "\n".join(lines)
