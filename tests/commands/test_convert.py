import functools
import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from support import family, program

from nest_dist.base import tree_paths
from nest_dist.pretrained import description, load, weight_files, weights
from nest_dist.pretrained import stored as stored_weights
from nest_dist.pretrained.formats import native, safetensors_file


def convert(form, to, where, out, *more):
    return program.succeeds("convert", f"--from={form}", f"--to={to}", where, out, *more)


def assert_same_bytes(found, expected):
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        assert (found[name].shape, found[name].dtype) == (leaf.shape, leaf.dtype), name
        assert np.asarray(found[name]).tobytes() == np.asarray(leaf).tobytes(), name


def test_a_checkpoint_becomes_a_file_byte_for_byte_and_what_it_is_is_said(trained, tmp_path):
    said = convert("nest_dist", "nest_dist", trained.workdir, tmp_path / "a.safetensors")
    assert "nest_dist weights of a NesT of 2 levels with (1, 1) layers, width 8, 1 heads" in said
    assert "left out: optimizer, step" in said
    assert_same_bytes(weight_files.read(tmp_path / "a.safetensors").arrays, trained.params)


@pytest.mark.parametrize(("form", "to"), list(itertools.product(weights.FORMATS, repeat=2)))
def test_from_each_format_to_each_and_back_gives_the_same_bytes(form, to, trained, tmp_path):
    heads = "--gin_bindings=NesT.heads = 1"  # which timm's names and shapes do not tell
    start, there, back = (
        tmp_path / f"{name}.{'flax' if form_of_file == 'official' else 'safetensors'}"
        for name, form_of_file in (("start", form), ("there", to), ("back", form))
    )
    convert("nest_dist", form, trained.workdir, start)
    convert(form, to, start, there, heads)
    convert(to, form, there, back, heads)
    assert_same_bytes(weight_files.read(back).arrays, weight_files.read(start).arrays)
    if form != "nest_dist":  # whose files also say where they come from
        assert back.read_bytes() == start.read_bytes()
    again = stored_weights.find(back, hints={"heads": 1})
    assert_same_bytes(again.params, trained.params)


@pytest.mark.parametrize("short", ["float16", "bfloat16"])
def test_shorter_floats_go_through_every_format_and_come_back_as_they_were(
    short, trained, tmp_path
):
    start = tmp_path / "start.safetensors"
    params = {name: leaf.astype(jnp.dtype(short)) for name, leaf in trained.params.items()}
    params["norm/scale"] = trained.params["norm/scale"]  # models mix them
    metadata = description.texts(trained.model)
    safetensors_file.write(start, params, metadata)
    where, form = start, "nest_dist"
    for to in ("timm", "official", "nest_dist"):
        out = tmp_path / f"to_{to}.{'flax' if to == 'official' else 'safetensors'}"
        said = convert(form, to, where, out, "--gin_bindings=NesT.heads = 1")
        assert f"{short} and float32 arrays in the {to} format" in said
        where, form = out, to
    assert_same_bytes(weight_files.read(where).arrays, params)
    loaded = tree_paths.flatten(load.load(where).variables["params"])
    assert {leaf.dtype.name for leaf in loaded.values()} == {"float32"}


def test_our_file_keeps_model_preprocessing_and_class_names(trained, pictures, tmp_path):
    convert("nest_dist", "nest_dist", trained.workdir, tmp_path / "a.safetensors")
    first, again = (load.load(where) for where in (trained.workdir, tmp_path / "a.safetensors"))
    assert again.model == first.model == trained.model
    assert again.class_names == first.class_names == ("circle", "square", "star")
    assert again.preprocess == first.preprocess


def test_another_step_than_the_newest_can_be_taken(trained, tmp_path):
    convert("nest_dist", "nest_dist", trained.workdir, tmp_path / "a.safetensors", "--step=3")
    found = weight_files.read(tmp_path / "a.safetensors").arrays
    np.testing.assert_array_equal(found["norm/scale"], 2 * trained.params["norm/scale"])


def test_the_parameters_of_a_whole_official_state_are_taken_and_the_rest_named(trained, tmp_path):
    official = weights.to_format("official", trained.params, trained.model)
    tree = tree_paths.unflatten(official)
    state = {"step": 1, "optimizer": {"state": {"m": np.zeros(2)}, "target": tree}}
    (tmp_path / "state.flax").write_bytes(serialization.msgpack_serialize(state))
    said = convert("official", "nest_dist", tmp_path / "state.flax", tmp_path / "a.safetensors")
    assert "left out: step, state" in said
    assert_same_bytes(weight_files.read(tmp_path / "a.safetensors").arrays, trained.params)


def test_a_published_model_is_named_with_its_number_of_parameters():
    said = load.describe(family.published("nest_tiny"))
    assert said.startswith("nest_tiny, a NesT of 3 levels with (2, 2, 8) layers, width 96, 3 heads")
    assert said.endswith("1000 classes for 224 x 224 pixels, 17,057,608 parameters")


def test_files_for_timm_say_what_they_are_and_how_to_load_them(trained, tmp_path):
    said = convert("nest_dist", "timm", trained.workdir, tmp_path / "a.safetensors")
    metadata = weight_files.read(tmp_path / "a.safetensors").metadata
    assert metadata == {"format": "pt", "num_classes": "3", "img_size": "16"}
    # timm has no name for this model.
    assert (
        "to load it: model = timm.models.nest.Nest(img_size=16, num_classes=3, in_chans=1, "
        "patch_size=4, num_levels=2, embed_dims=(8, 16), num_heads=(1, 2), depths=(1, 1), "
        "mlp_ratio=4, pad_type='same'); timm.models.load_checkpoint(model, "
    ) in said
    model = family.published("nest_tiny", image_size=16)
    shapes = native.shapes_of(model)
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    path, out = tmp_path / "t.safetensors", tmp_path / "o.safetensors"
    safetensors_file.write(path, params, description.texts(model))
    said = convert("nest_dist", "timm", path, out)
    assert "nest_dist weights of nest_tiny, a NesT of 3 levels" in said
    call = (
        f"timm.create_model('nest_tiny_jx', img_size=16, num_classes=1000, checkpoint_path='{out}')"
    )
    assert f"to load it: {call}" in said
    assert weight_files.read(out).metadata["architecture"] == "nest_tiny_jx"


@pytest.mark.parametrize(
    ("gelu", "form", "differ"),
    [
        ("tanh", "timm", True),
        ("exact", "timm", False),
        ("exact", "official", True),
        ("tanh", "official", False),
        ("exact", "nest_dist", False),
    ],
)
def test_another_gelu_where_the_weights_go_is_pointed_out(gelu, form, differ, trained, tmp_path):
    path = tmp_path / "in.safetensors"
    metadata = description.texts(trained.model.clone(gelu=gelu))
    safetensors_file.write(path, trained.params, metadata)
    out = tmp_path / ("out.flax" if form == "official" else "out.safetensors")
    said = convert("nest_dist", form, path, out)
    assert (f"note: this model has the {gelu} GELU, {form}'s have the" in said) == differ


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from=nest_dist", "--to=timm", "IN"], "convert got 1 paths; give two, IN and OUT."),
        (["--to=timm", "IN", "o.safetensors"], "--from is not given; give nest_dist or official"),
        (["--from=timm", "IN", "o.safetensors"], "--to is not given; give nest_dist or official"),
        (
            ["--from=tim", "--to=official", "IN", "o.flax"],
            "--from is 'tim', which is unknown; did you mean timm?",
        ),
        (
            ["--from=nest_dist", "--to=official", "IN", "o.pkl"],
            "o.pkl; for --to=official it must end in .flax, by which",
        ),
        (
            ["--from=timm", "--to=official", "IN", "o.flax"],
            "--from is timm, but {} holds nest_dist weights; set --from=nest_dist.",
        ),
        (
            ["--from=nest_dist", "--to=official", "IN", "o.flax", "--step=4"],
            "{}/checkpoints has no checkpoint of step 4; give one of 3, 7.",
        ),
        (
            ["--from=nest_dist", "--to=official", "IN", "no/o.flax"],
            "no/o.flax cannot be written (No such file or directory); choose another folder.",
        ),
        (
            ["--from=nest_dist", "--to=official", "IN", f"{'o' * 300}.flax"],
            "o.flax cannot be written (File name too long); choose another folder.",
        ),
        (
            ["--from=nest_dist", "--to=official", "o" * 300, "o.flax"],
            "ooo cannot be read (File name too long); give a file or folder that the user",
        ),
        (
            ["--from=nest_dist", "--to=official", "IN", "o.flax", "--gin_bindings=NesT.haeds = 3"],
            "NesT has no parameter 'haeds' (in bindings string line 1); did you mean heads?",
        ),
        (
            ["--from=nest_dist", "--to=official", "IN", "o.flax", "--gin_bindings=NesT.dim = 3"],
            "--gin_bindings has NesT.dim, which weights tell themselves; convert takes only NesT.h",
        ),
        (
            ["--from=nest_dist", "--to=official", "IN", "o.flax", "--gin_bindings=NesT.heads ="],
            "gin cannot read 'Unable to parse value. (line 1)'; put quotes around text, and write",
        ),
        *(
            (
                ["--from=nest_dist", "--to=official", "IN", "o.flax", f"--gin_bindings={binding}"],
                f"--gin_bindings is '{binding}', which gives no value; write NesT.heads = 3.",
            )
            for binding in ("NesT.heads = %x", "NesT.heads = @NesT()")
        ),
    ],
)
def test_what_cannot_be_converted_is_refused_and_nothing_written(
    arguments, message, trained, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    arguments = [str(trained.workdir) if word == "IN" else word for word in arguments]
    line = program.refuses(monkeypatch, "convert", *arguments)
    assert message.format(trained.workdir) in line
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_replaced(trained, tmp_path, monkeypatch):
    (tmp_path / "o.flax").write_text("precious")
    line = program.refuses(
        monkeypatch, "convert", "--from=nest_dist", "--to=official", trained.workdir,
        tmp_path / "o.flax",
    )  # fmt: skip
    assert "o.flax exists already; remove it, or choose another name." in line
    assert (tmp_path / "o.flax").read_text() == "precious"


def test_weights_with_a_hole_are_refused_and_nothing_written(trained, tmp_path, monkeypatch):
    official = weights.to_format("official", trained.params, trained.model)
    del official["LayerNorm_0/scale"]
    (tmp_path / "in").write_bytes(serialization.msgpack_serialize(tree_paths.unflatten(official)))
    line = program.refuses(
        monkeypatch, "convert", "--from=official", "--to=nest_dist", tmp_path / "in",
        tmp_path / "out.safetensors",
    )  # fmt: skip
    assert "missing: LayerNorm_0/scale; give the whole checkpoint of one NesT." in line
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_file_of_ours_that_describes_its_model_wrongly_is_refused(trained, tmp_path, monkeypatch):
    whole = description.texts(trained.model, class_names=("circle", "square"))
    for texts in (
        {"nest_dist.model": "{"},
        {"nest_dist.model": json.dumps({"image_size": 16, "colour": "blue"})},
        *(
            {"nest_dist.model": json.dumps({**json.loads(whole["nest_dist.model"]), name: forged})}
            for name, forged in (
                ("image_size", 2**40),
                ("num_channels", 10**30),
                ("num_classes", 10**12),
                ("block_repeats", [10**9, 1]),
            )
        ),
        {"nest_dist.class_names": "[1, 2, 3]"},
        whole,
    ):
        path = tmp_path / "in.safetensors"
        safetensors_file.write(path, trained.params, texts)
        line = program.refuses(
            monkeypatch, "convert", "--from=nest_dist", "--to=official", path, tmp_path / "o.flax"
        )
        assert "in.safetensors describes its model wrongly (" in line
        assert "write it again with `nest-dist convert`." in line


def test_the_average_of_checkpoints_is_their_mean(trained, tmp_path, monkeypatch):
    steps = [f"{trained.workdir}/checkpoints/{step}" for step in (3, 7)]
    soup, other = tmp_path / "soup.safetensors", tmp_path / "other.safetensors"
    said = convert("nest_dist", "nest_dist", *steps, soup, "--average")
    assert all(f"{step}: nest_dist weights of a NesT" in said for step in steps)
    # Those of step 3 are twice as large.
    expected = {name: np.float32(1.5) * leaf for name, leaf in trained.params.items()}
    assert_same_bytes(weight_files.read(soup).arrays, expected)
    assert load.load(soup).class_names == ("circle", "square", "star")
    flags = ("convert", "--from=nest_dist", "--to=nest_dist", "--average")
    fails = functools.partial(program.refuses, monkeypatch, *flags)
    assert "convert got 2 paths; give at least three, IN IN OUT." in fails(steps[0], other)
    assert f"--average got {steps[0]} twice; give each" in fails(steps[0], steps[0], other)
    metadata = description.texts(trained.model, class_names=("a", "b", "c"))
    safetensors_file.write(other, trained.params, metadata)
    out = tmp_path / "out.safetensors"
    assert f"{other} has other classes than {soup}, or in another" in fails(soup, other, out)
    more = trained.model.clone(num_classes=4)
    wider = tmp_path / "wider.safetensors"
    safetensors_file.write(
        wider, tree_paths.flatten(family.random_params(more)), description.texts(more)
    )
    assert "NesT.num_classes is 3 in " in fails(soup, wider, out)
