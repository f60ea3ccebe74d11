"""The pages say what is so: files, links, bindings, commands and renamed names exist."""

import pathlib
import re
import shlex

import pytest
from support import readme

from nest_dist.commands import table
from nest_dist.experiment import binding_names
from nest_dist.experiment import run as runs

TOP = pathlib.Path(__file__).parents[2]
PAGES = (
    *("README.md", "BUILD.md", "CHANGELOG.md", "gin/README.md", "launch/README.md"),
    *("tests/benchmarks/README.md", "tests/faults/README.md"),
)
LONGEST_README = 250
# What a page tells a reader to write, or what a command writes.
NOT_HERE = {
    "flowers.gin",
    "config.gin",
    "evaluation.json",
    "metadata.json",
    "metrics.jsonl",
    "run.json",
}
NOT_HERE |= {"goodput.json", "report.json", "report.jsonl", "tracker.json"}


def text(page):
    return (TOP / page).read_text()


def prose(page):
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_keeps_its_length():
    assert len(text("README.md").splitlines()) <= LONGEST_README


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page):
    named = re.findall(r"`([\w./]+\.(?:py|gin|sh|yaml|sbatch|json|jsonl))`", prose(page))
    folders = (TOP, TOP / "nest_dist", TOP / "gin", (TOP / page).parent)
    for name in {name for name in named if "NAME" not in name} - NOT_HERE:
        assert any((folder / name).exists() for folder in folders), f"{page}: there is no {name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = ((TOP / page).parent / path).resolve() if path else TOP / page
        assert target.exists(), f"{page}: there is no {path}"
        if anchor:
            known = anchors(target.relative_to(TOP))
            assert anchor in known, f"{page}: {path} has no {anchor}, but {sorted(known)}"


def test_the_table_of_commands_has_them_all():
    section = text("README.md").partition("\n## Commands\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \|", section, flags=re.MULTILINE)
    assert sorted(rows) == sorted(table.COMMANDS)


def rows_of_wishes():
    titles = ("I want to ...", "Optimizer, schedule, and what is trained")
    pages = [text("gin/README.md").partition(f"\n## {title}\n")[2] for title in titles]
    sections = [page.partition("\n## ")[0] for page in pages]
    rows = [
        re.findall(r"^\| ([^|]+) \| (`[^|]+`.*) \|$", it, flags=re.MULTILINE) for it in sections
    ]
    assert all(rows)
    return [row for section in rows for row in section]


@pytest.mark.parametrize(("wish", "bindings"), rows_of_wishes())
def test_every_wish_is_granted_by_its_bindings(wish, bindings, tmp_path):
    lines = re.findall(r"`([^`]+)`", bindings)
    later = tmp_path / "later.gin"
    later.write_text("\n".join(lines))
    if "later `--gin_file`" in wish:
        runs.load(["runs/nest_tiny_imagenet.gin", str(later)], [])
    else:
        runs.load(["runs/nest_tiny_imagenet.gin"], lines)


@pytest.mark.parametrize("rate", ["1e-3", "2e-3", "4e-3"])
def test_the_loop_over_learning_rates_binds_them(rate):
    loop = (
        text("gin/README.md").partition("for rate in 1e-3 2e-3 4e-3; do\n")[2].partition("done")[0]
    )
    binding = re.search(r'--gin_bindings="(.+)"', loop)[1].replace("$rate", rate)
    run = runs.load(["runs/quickstart.gin"], [binding])
    assert run.step.optimizer.peak_learning_rate == float(rate)


def commands_of_pages():
    """Each line of a code block that starts `nest-dist`, with its page; `...` is left out."""
    for page in PAGES:
        blocks = "".join(re.findall(r"^```.*?^```$", text(page), flags=re.MULTILINE | re.DOTALL))
        for line in re.sub(r"\\\n *", "", blocks).splitlines():
            words = line.split("nest-dist ")
            if len(words) == 2 and words[0].strip() in ("", ".venv/bin/"):
                yield page, re.split(r" {2,}", words[1])[0].replace(" ...", "")


@pytest.mark.parametrize(("page", "line"), [*commands_of_pages()])
def test_every_command_of_a_page_has_flags_files_and_bindings_that_are_there(page, line):
    name, *rest = shlex.split(line)
    flags = [word.removeprefix("--").partition("=") for word in rest if word.startswith("--")]
    command = table.COMMANDS[name]
    assert {flag for flag, *_ in flags} <= set(command.flags)
    assert command.arguments or len(flags) == len(rest)
    files, bindings = (
        [value.replace("$rate", "1e-3") for flag, _, value in flags if flag == wanted]
        for wanted in ("gin_file", "gin_bindings")
    )
    if any(file.startswith("runs/") for file in files):
        runs.load(files, bindings)


def test_the_run_of_photographs_is_shown_as_it_is():
    shown, *_ = readme.blocks("gin", "gin/README.md")
    assert shown == (TOP / "gin/runs/photographs.gin").read_text()
    explained = text("gin/README.md").partition("| lines | say |")[2].partition("\n\n")[0]
    for binding in re.findall(r"^([\w.]+) = ", shown, flags=re.MULTILINE):
        assert binding in explained or f"`.{binding.partition('.')[2]}`" in explained


def test_the_run_of_your_own_is_one(tmp_path):
    _, content, *_ = readme.blocks("gin", "gin/README.md")
    path = tmp_path / "flowers.gin"
    path.write_text(content)
    run = runs.load([str(path)], [])
    assert run.model.num_classes == 5
    assert run.data.source.folder == "data/flowers"


def test_the_mixture_goes_with_a_shipped_run(tmp_path):
    (content,) = (it for it in readme.blocks("gin", "gin/README.md") if "@Mixture()" in it)
    path = tmp_path / "mixture.gin"
    path.write_text(content)
    mixture = runs.load(["runs/photographs.gin", str(path)], []).data.source
    assert [source.split for source in mixture.sources] == ["train", "drawings[!::50]"]
    assert mixture.phases == ((0, (3, 1)),)


def test_the_changelog_names_every_renamed_binding():
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.+) \|$", text("CHANGELOG.md"), flags=re.MULTILINE))
    assert rows.keys() == binding_names.RENAMED.keys()
    for old, new in binding_names.RENAMED.items():
        assert rows[old] == f"`{new}`" if new else rows[old].startswith("removed")
