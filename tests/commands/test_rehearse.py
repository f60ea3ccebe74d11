"""What a run would take of a TPU that is not here, compiled for it on this machine."""

import json
import re
import shlex
import types

import pytest
from support import commands, rehearsals
from support.refusals import refusal

from nest_dist.base import failures
from nest_dist.commands import rehearse, table
from nest_dist.rehearsal import compiled_step, forecast


def options(*bindings, **given):
    """As `cli` makes them of flags."""
    values = {name: table.FLAGS[name].default for name in table.COMMANDS["rehearse"].flags}
    gin = {"gin_file": list(rehearsals.FILES), "gin_bindings": [*rehearsals.SMALL, *bindings]}
    return types.SimpleNamespace(**{**values, **gin, "topology": "v5e:2x2", **given})


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """The screen and the report of README's rehearsal, of a small model."""
    output = tmp_path_factory.mktemp("rehearsal")
    _, *flags = shlex.split(rehearsals.README)
    done = commands.nest_dist(
        *flags,
        f"--gin_file={rehearsals.FILES[1]}",
        *(f"--gin_bindings={binding}" for binding in rehearsals.SMALL),
        f"--output={output}",
        "--keep",
        succeeds=True,
    )
    assert not done.stderr
    assert {"step.bin", "manifest.json", "config.gin"} <= {path.name for path in output.iterdir()}
    return done.stdout, json.loads((output / "report.json").read_text())


@pytest.mark.slow
def test_the_data_need_not_be_here(rehearsed):
    screen, report = rehearsed
    assert "/data/imagenet/train/manifest.json cannot be read" in screen
    assert "1,281,167 training examples, another number is set by --examples" in screen
    assert report["devices"] == 4
    assert report["mesh"] == {"data": 1, "fsdp": 4, "rows": 1, "tensor": 1}
    assert report["images_a_device"] == 8
    assert "4 TPU v5 lite devices, mesh data=1 x fsdp=4 x rows=1 x tensor=1" in screen
    assert f"{report['parameters']:,} parameters; 32 images a step, 8 a device" in screen
    assert report["compile_seconds"] > 0
    assert report["versions"]["jax"]


@pytest.mark.slow
def test_the_bytes_of_a_device_are_told_by_part(rehearsed):
    screen, report = rehearsed
    memory = report["memory"]
    assert sum(memory["parts"].values()) == memory["total"]
    assert min(memory["parts"].values()) >= 0
    # Two moments in float32 beside the parameters, and two counters.
    extra = memory["parts"]["optimizer"] - 2 * memory["parts"]["parameters"]
    assert 0 <= extra <= 16
    assert memory["parts"]["batch"] == 8 * (16 * 16 * 3 + 4)
    assert memory["limit"] == 16 * 2**30
    assert memory["fits"] is True
    assert re.search(r"together +[\d.]+ of 17,179.9: fits", screen)


def test_cycles_are_told_by_part_of_the_model(rehearsed):
    screen, report = rehearsed
    parts = report["cycles"]["parts"]
    known = {*forecast.COMPONENTS.values(), forecast.COLLECTIVES, forecast.OTHER}
    assert parts.keys() == known - {"scanning"}
    assert min(parts.values()) > 0
    assert report["cycles"]["step"] == sum(parts.values())
    assert report["cycles"]["image"] == report["cycles"]["step"] / 8
    # What the names of our parts do not reach: the head, the loss and changes of layout.
    assert parts[forecast.OTHER] < 0.4 * report["cycles"]["step"]
    for part in parts:
        assert re.search(rf"^  {part} +[\d,]+ +[\d,]+ +[\d.]+%$", screen, re.MULTILINE)
    assert "cycles, estimated by the compiler" in screen


def test_speed_follows_from_cycles_and_the_table_of_chips(rehearsed):
    screen, report = rehearsed
    speed = report["images_per_second_a_chip"]
    both = report["cycles"]["image"] + report["bundle_cycles"]["image"]
    assert speed == pytest.approx(1.5e9 / both)
    assert report["mfu"] == pytest.approx(speed * report["flops_an_image"]["model"] / 197e12)
    assert report["flops_an_image"]["compiler"] > 0.5 * report["flops_an_image"]["model"]
    assert f"{speed:,.0f} images/s a chip" in screen
    assert "of its 197 TFLOP/s, if the estimate holds at 1.50 GHz" in screen


def test_what_devices_exchange_is_told_by_kind_and_axis(rehearsed):
    screen, report = rehearsed
    found = {(each["kind"], *each["axes"]): each for each in report["collectives"]}
    assert {kind for kind, _ in found} >= {"all-gather", "all-reduce"}
    assert {axes for _, axes in found} == {"fsdp"}
    assert all(each["bytes"] > 0 and each["wire_bytes"] > 0 for each in found.values())
    assert re.search(r"^all-gather over fsdp: \d+ a step, [\d.]+ MB$", screen, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "more"),
    [
        ({"data": 4}, 0.005),
        ({"data": 2, "rows": 2}, 0.005),
        # Where parameters are sharded, the compiler shares out gathering and adding differently.
        ({"fsdp": 4}, 0.2),
        ({"data": 2, "fsdp": 2}, 0.2),
    ],
)
def test_kernels_exchange_no_more_bytes_than_the_plain_form(mesh, more, tmp_path, capsys):
    shape = {"data": 1, "fsdp": 1, "rows": 1, **mesh}
    bindings = [f"MeshShape.{axis} = {size}" for axis, size in shape.items()]
    exchanged = {}
    for kernels in ("plain", "fused"):
        output = tmp_path / kernels
        wide = ("NesT.dim = 32", f"NesT.kernels = '{kernels}'", "NesT.compute_dtype = 'float32'")
        given = {"examples": 1000, "output": str(output), "without_kernels": True}
        rehearse.run(options(*bindings, *wide, **given))
        report = json.loads((output / "report.json").read_text())
        exchanged[kernels] = sum(each["bytes"] for each in report["collectives"])
        assert report["without_either"] == {}
    assert exchanged["fused"] <= (1 + more) * exchanged["plain"], exchanged
    # The last report is that of the kernels.
    assert len(report["counted"]) >= 4
    assert 0 < report["layer_cycles"] < report["plain_layer_cycles"]
    assert re.search(
        r"^without kernels +[\d,]+, [\d.]+ times as many$", capsys.readouterr().out, re.M
    )


def test_an_audit_lists_the_parameters_and_compiles_nothing(monkeypatch, capsys):
    monkeypatch.delattr(compiled_step, "compiled")
    rehearse.run(options(audit=True, examples=1000))
    table = capsys.readouterr().out
    assert re.match(
        r"parameter +shape +dtype +mesh axes +bytes a device +rate +decay +frozen +rule\n", table
    )
    (query,) = re.findall(r"^levels_0/layers_0/attention/query/kernel.*$", table, re.MULTILINE)
    assert re.split(r"  +", query)[1:4] == ["8 x 2 x 4", "float32", "fsdp, -, -"]


@pytest.mark.parametrize(
    ("bindings", "given", "text"),
    [
        (("MeshShape.fsdp = 3",), {}, "MeshShape fsdp=3 does not divide 4 devices into a whole"),
        (("Run.global_batch = 30",), {}, "Run.global_batch is 30, not a multiple of the mesh's 4"),
        (
            ("MeshShape.fsdp = 1", "MeshShape.rows = 4", "NesT.block_side = 4"),
            {},
            "MeshShape.rows is 4; it must divide the rows of blocks of the first level (2)",
        ),
        (
            ("MeshShape.fsdp = 1", "MeshShape.tensor = 4"),
            {},
            "MeshShape.tensor is 4; it must divide NesT.heads (2): set it to 1, 2, or change",
        ),
        (("Rules.embd = ('fsdp',)",), {}, "Rules has no parameter 'embd'"),
        (("Rules.embed = ('fsd',)",), {}, "a mesh axis in Rules.embed is 'fsd', which is unknown"),
        ((), {"topology": "v5e:3x3"}, "--topology is 'v5e:3x3', which the compiler does not know"),
        ((), {"slices": 2}, "MeshShape.slices is 1, the devices lie in 2; set it to 2."),
        ((), {"examples": 0}, "--examples is 0; it must be at least 1."),
        ((), {"examples": 31}, "the training split has 31 examples, fewer than one batch of 32"),
        ((), {"fit": True, "remat": ["all"]}, "--remat is 'all', which is unknown; known are dots"),
        ((), {"topology": None, "fit": True}, "--fit is given for cpu, whose memory is not in"),
        ((), {"topology": "h200"}, "--topology is 'h200'; give h200:GPUS or h200:HOSTSxGPUS, such"),
        ((), {"output": "/proc/here"}, "--output is /proc/here, which cannot be written"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(bindings, given, text, monkeypatch):
    monkeypatch.delattr(compiled_step, "compiled")
    if given.get("topology", "") is None:
        bindings = ("MeshShape.fsdp = 1", "MeshShape.data = -1")
    with refusal(text):
        rehearse.run(options(*bindings, **given))


def test_a_large_parameter_that_stays_whole_is_refused_before_anything_is_compiled(monkeypatch):
    monkeypatch.delattr(compiled_step, "compiled")
    with pytest.raises(failures.BadInput, match=r"MeshShape.fsdp is 4, which does not divide 30"):
        rehearse.run(options("NesT.image_size = 448", "NesT.dim = 30", "NesT.block_side = 28"))


@pytest.mark.slow
def test_a_step_that_needs_more_memory_than_there_is_is_refused(tmp_path):
    # 2**30 examples of a batch of 768 bytes alone are 206 GB for each of four devices.
    given = {"examples": 2**30, "output": str(tmp_path)}
    with pytest.raises(failures.BadInput, match=r"memory of [\d.]+[GT]B, a device has 15.75GB; l"):
        rehearse.run(options("Run.global_batch = 1073741824", **given))
