"""What a notebook sees: names, short texts, and examples that run."""

import doctest

import pytest
from support import harness, readme

import nest_dist
from nest_dist.pretrained import load

PUBLIC = {
    "NesT": nest_dist.NesT,
    "load": nest_dist.load,
    "gradcat": nest_dist.gradcat,
    "batches": nest_dist.batches,
}


def test_the_package_lists_what_is_public():
    assert set(dir(nest_dist)) == {*PUBLIC, "__version__"}
    assert sorted(nest_dist.__all__) == sorted(PUBLIC)
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        nest_dist.lod  # noqa: B018


def test_listing_the_names_loads_nothing():
    code = "import sys, nest_dist; dir(nest_dist); print(sorted({'jax', 'gin'} & set(sys.modules)))"
    done = harness.python("-c", code, environment=harness.environment())
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.medium
@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_of_its_help_runs(name):
    found = PUBLIC[name]
    owner = load.Pretrained if name == "load" else None
    examples = 0
    for each in filter(None, (found, owner)):
        test = doctest.DocTestParser().get_doctest(each.__doc__, {}, name, None, 0)
        result = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(test)
        assert result.failed == 0
        assert result.attempted, f"help({name}) has no example"
        examples += result.attempted
    assert examples


@pytest.mark.medium
def test_the_training_loop_of_the_page_learns():
    (code,) = [each for each in readme.blocks("python", "gin/README.md") if "optax.adamw" in each]
    assert len([line for line in code.splitlines() if line]) <= 17
    scope = {}
    exec(compile(code.replace("range(500)", "range(100)"), "gin/README.md", "exec"), scope)
    assert scope["value"] < 1.8  # of log(10) = 2.3 at the start
