"""The model card of a repository: what its weights are, where from, how good, how to load them."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import nest_dist
from nest_dist.config import run_json
from nest_dist.model import nest
from nest_dist.pretrained import load

_TOP_1 = "eval/top_1"
_SHOWN_CLASSES = 100
# What makes a run what it is, by path.
_RECIPE = ("Run.num_epochs", "Run.global_batch", "Run.seed", "Run.init_from", "Run.step.")
_TRANSFORMS = "Run.data.transforms"
_DATA = re.compile(r"Run\.(data|evaluations(\[\d+\])?\.data)\.source")


def split_of(run: run_json.Json) -> str:
    """The name of the split of the evaluation; "evaluation" where its source has none."""
    source = run_json.select(run, "evaluations", 0, "data", "source")
    return source["fields"].get("split") or "evaluation"


def text(
    name: str,
    license_id: str,
    model: nest.NesT,
    run: run_json.Json,
    class_names: Sequence[str],
    step: int,
    metrics: Mapping[str, float],
    curves: str | None,
) -> str:
    """The card, as README.md.

    Args:
        name: OWNER/NAME.
        license_id: of the weights, as the Hub writes it.
        run: that trained them; all of its texts are published.
        class_names: empty if they are not known.
        metrics: of its evaluation; empty if there was none.
    """
    values = run_json.flatten(run).values()
    recipe = [it for it in values if it.path.startswith((*_RECIPE, _TRANSFORMS))]
    data = [it for it in values if _DATA.match(it.path)]
    alternative = "Loss, accuracy, learning rate and speed over the steps"
    sections = [
        _front_matter(name, license_id, model, metrics, split_of(run)),
        f"# {name.partition('/')[2]}",
        (
            "NesT, the nested hierarchical vision transformer (arXiv 2105.12723), trained for "
            f"{step:,} steps by nest_dist {nest_dist.__version__}, in JAX: "
            f"{_code(load.describe(model))}."
        ),
        "## How to load it",
        _usage(name, model),
        "## Results",
        _results(metrics, split_of(run), step),
        *([f"![{alternative}]({curves})"] if curves else []),
        "## Data",
        _table(data),
        _classes(model, class_names),
        "## Recipe",
        f"All values are in `{run_json.NAME}`; names of folders are shortened.",
        _table(recipe),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(
    name: str, license_id: str, model: nest.NesT, metrics: Mapping[str, float], split: str
) -> str:
    """Metadata for the Hub; JSON is YAML."""
    task = "image-classification" if model.num_classes else "image-feature-extraction"
    fields: dict[str, object] = {
        "license": license_id,
        "library_name": "nest_dist",
        "pipeline_tag": task,
        "tags": ["nest", "jax", "vision"],
    }
    if _TOP_1 in metrics:
        result = {
            "task": {"type": task},
            "dataset": {"type": "other", "name": "evaluation data of the run", "split": split},
            "metrics": [{"type": "accuracy", "value": metrics[_TOP_1]}],
        }
        fields["model-index"] = [{"name": name.partition("/")[2], "results": [result]}]
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _usage(name: str, model: nest.NesT) -> str:
    use = (
        'loaded.predict("picture.png", top=5)  # names and probabilities'
        if model.num_classes
        else 'loaded.features("picture.png")  # float32 [1, C]'
    )
    lines = ["```python", "import nest_dist", "", f'loaded = nest_dist.load("hf:{name}")', use]
    return "\n".join([*lines, "```", "", "It needs nest_dist with its extra `hub`."])


def _results(metrics: Mapping[str, float], split: str, step: int) -> str:
    if not metrics:
        return f"The checkpoint of step {step:,} was not evaluated."
    rows = [("metric", f"{split}, step {step:,}"), ("---", "---")]
    for metric, value in metrics.items():
        shown = f"{value:.2%}" if metric.startswith("eval/top_") else f"{value:.4g}"
        rows.append((metric.removeprefix("eval/").replace("_", "-"), shown))
    return _rows(rows)


def _classes(model: nest.NesT, class_names: Sequence[str]) -> str:
    if not class_names:
        return f"{model.num_classes or 'No'} classes, without names."
    shown = ", ".join(map(_code, class_names[:_SHOWN_CLASSES]))
    more = len(class_names) - _SHOWN_CLASSES
    return f"{len(class_names)} classes: {shown}{f', and {more} more' if more > 0 else ''}."


def _table(settings: Iterable[run_json.Setting]) -> str:
    def rows() -> Iterator[tuple[str, str]]:
        yield from (("binding", "value"), ("---", "---"))
        yield from ((_code(it.binding), _code(it.text)) for it in settings)

    return _rows(rows())


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"| {left} | {right} |" for left, right in rows)


def _code(words: str) -> str:
    """A text that nobody takes for Markdown, in a table or out of it."""
    return f"`{' '.join(words.split()).replace('`', chr(39)).replace('|', '¦')}`"
