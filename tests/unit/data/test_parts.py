"""Parts of a split: they cover it, share nothing, and are refused in one line."""

import contextlib

import numpy as np
import pytest
from support import batches, datasets, refusals
from support import parquet as parquet_files

from nest_dist.base import failures
from nest_dist.data import batch, parts
from nest_dist.data.sources import digits, image_folder, parquet, retries
from nest_dist.data.sources import mixture as mixtures


def ids(text, length=40):
    chosen = parts.slice_of(text, length, "Part.slice")
    return [chosen[number] for number in range(len(chosen))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[:]", range(40)),
        ("[:98%]", range(39)),
        ("[98%:]", range(39, 40)),
        ("[12.5%:50%]", range(5, 20)),
        ("[7:]", range(7, 40)),
        ("[-7:]", range(33, 40)),
        ("[:-7]", range(33)),
        ("[3::10]", range(3, 40, 10)),
        ("[5:20:4]", range(5, 20, 4)),
        ("[!:7]", range(7, 40)),
        ("[!10:20]", [*range(10), *range(20, 40)]),
        ("[!::2]", range(1, 40, 2)),
        ("[!5:20:4]", [it for it in range(40) if it not in range(5, 20, 4)]),
    ],
)
def test_a_slice_has_the_examples_that_it_says(text, expected):
    assert ids(text) == list(expected)
    chosen = parts.slice_of(text, 40, "Part.slice")
    below = [sum(it < bound for it in expected) for bound in range(41)]
    assert chosen.before(np.arange(41)).tolist() == below


@pytest.mark.parametrize("length", [1, 2, 3, 7, 99, 1_797])
@pytest.mark.parametrize(
    "texts",
    [
        ("[:33.3%]", "[33.3%:98%]", "[98%:]"),
        ("[:1]", "[1:]"),
        ("[:-1]", "[-1:]"),
        tuple(f"[{first}::7]" for first in range(7)),
        ("[::3]", "[!::3]"),
        ("[10%:60%:2]", "[!10%:60%:2]"),
    ],
)
def test_parts_with_common_borders_cover_a_split_and_share_nothing(texts, length):
    covered = []
    for text in texts:
        with contextlib.suppress(failures.BadInput):  # an empty one is refused
            covered += ids(text, length)
    assert sorted(covered) == list(range(length))


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        (
            "[98%]",
            (
                "Part.slice has the part '[98%]'; write [START:STOP] or [START:STOP:STEP] with "
                "numbers of examples or percent, as in [:98%], [1000:] or [::50], or [!::50] for "
                "all others."
            ),
        ),
        ("[::0]", "Part.slice has the part '[::0]'; write [START:STOP]"),
        ("[1.5:]", "Part.slice has the part '[1.5:]'; write [START:STOP]"),
        (
            "[:41]",
            (
                "Part.slice has the part '[:41]', but the data set has 40 examples; give borders "
                "from -40 to 40, or 0% to 100%."
            ),
        ),
        ("[101%:]", "Part.slice has the part '[101%:]', but the data set has 40 examples; give"),
        (
            "[20:20]",
            (
                "Part.slice has the part '[20:20]', which holds none of the 40 examples; choose "
                "other borders."
            ),
        ),
        ("[!:]", "Part.slice has the part '[!:]', which holds none of the 40 examples;"),
    ],
)
def test_what_is_no_part_is_refused(text, refusal):
    with refusals.refusal(refusal):
        ids(text)


def opened(config):
    return retries.opened("a split", config)


def test_the_split_of_any_source_may_name_a_part(tmp_path):
    datasets.image_folder(tmp_path)
    whole = opened(image_folder.ImageFolder(str(tmp_path), "train"))
    keys = [whole[number]["key"] for number in range(len(whole))]
    held_out, rest = (
        opened(image_folder.ImageFolder(str(tmp_path), f"train[{text}::4]")) for text in ("", "!")
    )
    assert [held_out[number]["key"] for number in range(len(held_out))] == keys[::4]
    assert sorted(
        source[it]["key"] for source in (held_out, rest) for it in range(len(source))
    ) == (sorted(keys))
    assert held_out.class_names == whole.class_names
    assert len({source.fingerprint for source in (whole, held_out, rest)}) == 3
    assert held_out.known_labels().tolist() == whole.known_labels()[::4].tolist()
    assert len(opened(digits.Digits("train[:50%]"))) == 1438 // 2
    wrapped = parts.Part(digits.Digits("train[:50%]"), "[:50%]")
    assert len(opened(wrapped)) == 1438 // 4


def test_a_wrong_part_of_a_split_names_the_binding_before_anything_is_opened():
    with pytest.raises(failures.BadInput, match=r"^ImageFolder.split has the part '\[98\]'; write"):
        opened(image_folder.ImageFolder("missing", "train[98]"))
    with pytest.raises(failures.BadInput, match=r"^Digits.split is 'tran', which is unknown"):
        digits.Digits("tran[:98%]")


def test_a_part_of_a_mixture_is_refused():
    mixed = mixtures.Mixture((digits.Digits("train"),), ("digits",), (1,))
    with pytest.raises(failures.BadInput, match=r"'\[:5\]' of a Mixture; give parts as its Mix"):
        parts.Part(mixed, "[:5]").open()


@pytest.mark.parametrize("text", ["[:50%]", "[5:29:3]", "[!::2]", "[!7:19]"])
def test_a_part_of_parquet_reads_the_row_groups_that_hold_it(text, tmp_path):
    parquet_files.write(tmp_path)
    config = parquet.Parquet((str(tmp_path),), "train", virtual_shards=2, window=2)
    whole, part = config.open(), opened(parquet.Parquet((str(tmp_path),), f"train{text}"))
    expected = [whole[number]["key"] for number in ids(text, len(whole))]
    assert [part[number]["key"] for number in range(len(part))] == expected
    assert sum(part.row_groups.lengths) == len(part)
    assert len(part.row_groups.bytes) == len(part.row_groups.lengths)
    # All examples, each once, from the row groups that are held.
    part, fetched = opened(parquet.Parquet((str(tmp_path),), f"train{text}")), []
    read = part.source._cache._fetch
    part.source._cache._fetch = lambda number: (fetched.append(number), read(number))[1]
    taken = batches.evaluation(part, global_batch=4)
    assert sum(int(arrays["weight"].sum()) for arrays in taken) == len(part)
    assert sorted({*fetched}) == part._groups.tolist()


def test_a_part_trains_on_its_examples_alone():
    images = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None, None], (40, 8, 8, 1))
    source = batch.Arrays(images, np.arange(40) % 3, ("a", "b", "c"))
    held = parts.Part(batches.Opened(source), "[::5]").open()
    taken = batches.training(held, steps=6, global_batch=4, transforms=())
    seen = np.concatenate([arrays["image"][:, 0, 0, 0] for arrays in taken])
    assert sorted(seen) == sorted([*range(0, 40, 5)] * 3)
