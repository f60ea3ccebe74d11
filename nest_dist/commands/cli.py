"""The program `nest-dist`: reads flags, runs a command, and ends with its exit code."""

import contextlib
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
from nest_dist.commands import table

# A namespace with one attribute for each flag of the command.
Options = types.SimpleNamespace


# Of this process, where the system allows so many; the soft limit of most systems is 1024.
OPEN_FILES = 1 << 16


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
    return {name: getattr(options, name) for name in table.HOSTS}


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else failures.USAGE
    name, *rest = arguments
    if name == "--version":
        print(importlib.import_module("nest_dist").__version__)
        return 0
    checks.one_of("the command", name, table.COMMANDS)
    values = _flag_values(table.COMMANDS[name])
    if {"-h", "--help", "-help"} & set(rest):
        print(_help(name, table.COMMANDS[name]))
        return 0
    try:
        _, *others = values([name, *rest])
    except flags.UnrecognizedFlagError as error:
        raise failures.BadInput(_unknown_flag(name, error.flagname, error)) from None
    except flags.Error as error:
        raise failures.BadInput(f"{name}: {failures.first_line(error)}") from None
    if others and not table.COMMANDS[name].arguments:
        raise failures.BadInput(
            f"{name} takes flags only, not {others[0]!r}; write --flag=VALUE, in quotes where "
            "the value has spaces."
        )
    os.getcwd()  # where there is none, libraries fail later, each in its own way
    texts = (flag for flag in table.COMMANDS[name].flags if table.FLAGS[flag].kind == "string")
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
    chosen = {flag: values[flag].value for flag in table.COMMANDS[name].flags}
    # gin takes bytes that are no UTF-8, as in a path, only as it would write them itself.
    chosen["gin_bindings"] = [_escaped(text) for text in chosen.get("gin_bindings") or ()]
    options = Options(**chosen, arguments=others)
    if "process_id" not in table.COMMANDS[name].flags:
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
    if "gin_bindings" not in table.COMMANDS[name].flags or "Did you mean" in said:
        return said
    importlib.import_module("nest_dist.experiment.run")  # whose import registers what can be bound
    bindings = importlib.import_module("nest_dist.experiment.binding_names").bindings_like(flag)
    meant = f"as in {' or '.join(bindings)} = VALUE" if bindings else "NAME.FIELD = VALUE"
    return f"{name} has no flag --{flag}; a value of the run is given to --gin_bindings, {meant}."


def _escaped(text: str) -> str:
    return "".join(f"\\u{ord(it):04x}" if "\ud800" <= it <= "\udfff" else it for it in text)


def _flag_values(command: table.Command) -> flags.FlagValues:
    values = flags.FlagValues()
    values.set_gnu_getopt()  # flags may also follow arguments
    for name in command.flags:
        flag = table.FLAGS[name]
        define = getattr(flags, f"DEFINE_{flag.kind}")
        define(name, flag.default, flag.help, flag_values=values)
    return values


def _overview() -> str:
    width = max(map(len, table.COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in table.COMMANDS.items()]
    return "\n".join(
        [
            "nest-dist COMMAND [--flag=VALUE ...]; multi-host pretraining of NesT in JAX",
            *lines,
            "`nest-dist COMMAND --help` lists the flags of a command.",
        ]
    )


def _help(name: str, command: table.Command) -> str:
    width = max(map(len, command.flags), default=0)
    usage = " ".join(filter(None, [name, command.arguments]))
    lines = [f"nest-dist {usage}: {command.summary}"]
    for name in command.flags:
        flag = table.FLAGS[name]
        default = "" if flag.default is None else f" (default {flag.default})"
        lines.append(f"  --{name:<{width}}  {flag.help}{default}")
    return "\n".join(lines)
