import pytest

from nest_dist.base import failures
from nest_dist.commands import recorded
from nest_dist.data import crop

SHORT = "import nest_dist.train.pixels\nPixels.mean = (0.5,)\n"


def made(text, name, field):
    configuration = recorded.Recorded(text)
    return configuration.value(name, field) if field else configuration.build(name)


def refused(message, text, name, field=None):
    with pytest.raises(failures.BadInput, match=message) as error:
        made(text, name, field)
    assert "\n" not in str(error.value)


def test_references_scopes_and_macros_are_followed():
    text = recorded.Recorded(
        """
        import nest_dist.data.crop as somewhere
        side = 8
        a/CentrePad.side = %side
        b/CentrePad.side = %other
        A.all = [@a/CentrePad(), (@b/somewhere.CentrePad(), 'text')]
        """,
        other=4,
    )
    assert text.value("A", "all") == [crop.CentrePad(8), (crop.CentrePad(4), "text")]
    assert text.value("A", "nothing") is None
    assert text.value("B", "all") is None


def test_objects_of_this_package_only_are_made_and_none_that_open_files():
    popen = "import subprocess\nA.b = @Popen()\nPopen.args = ('touch', 'x')"
    refused(r"uses Popen, which is none of nest_dist's own", popen, "A", "b")
    digits = "import nest_dist.data.sources.digits\nA.b = @Digits()"
    refused(r"uses Digits, which is none of nest_dist's own", digits, "A", "b")
    borrowed = "import nest_dist.train.pixels\nA.b = @failures()"
    refused(r"uses failures, which is none of nest_dist's own", borrowed, "A", "b")
    renamed = "import nest_dist.train.pixels_of_tomorrow\nA.b = @Pixels()"
    refused(r"uses Pixels, which is none of nest_dist's own", renamed, "A", "b")


@pytest.mark.parametrize(
    "text", ["NesT.dim = = 3", "NesT.dim = (3", "NesT.dim = '''", "A.b = @", "import\n"]
)
def test_what_is_no_configuration_is_refused(text):
    refused(r"cannot be read \(.*\); the checkpoint is damaged\.", text, "NesT")


def test_values_of_another_version_are_refused():
    later = SHORT + "Pixels.standard_deviation = (0.5,)\nPixels.gamma = 2.2"
    refused(r"makes no Pixels \(.*'gamma'\); use the version of nest_dist that it", later, "Pixels")
    refused(r"makes no Pixels \(.*'standard_deviation'\); use the version", SHORT, "Pixels")
    refused(r"gives %scale no value; the checkpoint is damaged", "A.b = %scale", "A", "b")
