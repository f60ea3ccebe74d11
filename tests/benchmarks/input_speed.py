"""The input pipeline beside timm's recipe on Pillow and the official one on tf.data.

    .venv/bin/python tests/benchmarks/input_speed.py

Each contender is a process of its own, pinned to the same core, and they take turns, so that the
neighbours of this machine disturb all alike; times are CPU times of whole rounds, and the table
shows the median and the ratios of one run. The other two need environments of their own, which are
made once below .venv-benchmarks (about 1.5 GB); --without leaves one out.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import typing
import venv

HERE = pathlib.Path(__file__).parent
TOP = HERE.parents[1]
ENVIRONMENTS = TOP / ".venv-benchmarks"
# Pillow is held below 13, whose Posterize refuses the zero bits that timm's recipe may ask for.
PACKAGES = {
    "timm": ["pillow<13", "numpy"],
    "tensorflow": ["tensorflow-cpu"],
    # For model_speed.py, without torchvision, which need not fit this torch.
    "torch": ["torch==2.13.0", "safetensors", "pyyaml", "huggingface_hub", "numpy", "pillow"],
}
WITHOUT_DEPENDENCIES = {"timm": "timm==1.0.31", "torch": "timm==1.0.31"}
OTHERS = ("timm", "tensorflow")
PICTURES = 160
HEIGHT, WIDTH = 375, 500
PHOTOGRAPHS = ("astronaut", "coffee", "motorcycle")
QUALITY = 97  # with which the files are about as large as ImageNet's, 108 KB on average
ROUNDS = 5
MARKED = "marked"
# What is said of the pictures, as they come and as `prepare --restart_markers` stores them, and the
# folder that they are in.
KINDS = {"": ".", ", with restart markers": MARKED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without", action="append", default=[], choices=OTHERS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = write_pictures(pathlib.Path(folder))
        print(f"{PICTURES} JPEGs of {WIDTH} x {HEIGHT}, {size / 1000:.0f} KB on average, one core")
        print(write_marked(pathlib.Path(folder)))
        contenders = [Contender("nest_dist", sys.executable, folder)]
        for name in OTHERS:
            if name not in options.without:
                contenders.append(Contender(name, environment(name), folder))
        rounds = [{each.name: each.round() for each in contenders} for _ in range(options.rounds)]
        for each in contenders:
            each.close()
        show(rounds)
        print(scaling(folder))


def write_pictures(folder: pathlib.Path) -> float:
    """Parts of real photographs; returns the mean size in bytes."""
    sys.path.insert(0, str(TOP / "tests"))
    import cv2
    from support import photographs

    sizes = []
    for number in range(PICTURES):
        image = photographs.photograph(PHOTOGRAPHS[number % len(PHOTOGRAPHS)])
        down = number * 7 % (image.shape[0] - HEIGHT + 1)
        right = number * 11 % (image.shape[1] - WIDTH + 1)
        part = cv2.cvtColor(image[down : down + HEIGHT, right : right + WIDTH], cv2.COLOR_RGB2BGR)
        path = folder / f"{number:04d}.jpg"
        cv2.imwrite(str(path), part, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        sizes.append(path.stat().st_size)
    return statistics.mean(sizes)


def write_marked(folder: pathlib.Path) -> str:
    """The same pictures as `prepare --restart_markers` stores them; returns what that took."""
    sys.path.insert(0, str(TOP))
    from nest_dist.dataset_builder import pictures

    (folder / MARKED).mkdir()
    if shutil.which(pictures.JPEGTRAN) is None:
        return "without jpegtran, so without restart markers"
    began, before, after = time.perf_counter(), 0, 0
    for path in sorted(folder.glob("*.jpg")):
        original = path.read_bytes()
        marked, _ = pictures.stored(original, path.name, restart_markers=True)
        (folder / MARKED / path.name).write_bytes(marked)
        before, after = before + len(original), after + len(marked)
    each = 1000 * (time.perf_counter() - began) / PICTURES
    return f"restart markers: {each:.0f} ms a picture to make, {after / before:.1%} of its bytes"


def environment(name: str) -> str:
    """The Python that has the packages of a contender, made where it is missing."""
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        print(f"making {folder} ...", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        quiet = ("--quiet", "--disable-pip-version-check", "--no-cache-dir")
        install = (python, "-m", "pip", "install", *quiet)
        subprocess.run([*install, *PACKAGES[name]], check=True)
        if name in WITHOUT_DEPENDENCIES:
            subprocess.run([*install, "--no-deps", WITHOUT_DEPENDENCIES[name]], check=True)
        (folder / "done").touch()
    return str(python)


class Contender:
    """A process that runs one round whenever it is asked to."""

    def __init__(self, name: str, python: str, folder: str, kind: str = "input") -> None:
        self.name = name
        self._process = subprocess.Popen(
            [python, HERE / f"{kind}_{name}.py", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "PYTHONPATH": str(TOP),
            },
        )
        self.round()  # warms up

    def round(self) -> dict[str, float]:
        """CPU milliseconds an image (of models, images a second), by what was done."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} has ended")
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def show(rounds: list[dict[str, dict[str, float]]]) -> None:
    """Medians, and the medians of the ratios round by round."""
    print(f"\n{'median of ' + str(len(rounds)):<58}{'ms/image':>9}{'images/s':>10}")
    for name, parts in rounds[0].items():
        for part in parts:
            middle = statistics.median(each[name][part] for each in rounds)
            print(f"{name + ': ' + part:<58}{middle:>9.2f}{1000 / middle:>10.0f}")

    def ratio(left: tuple[str, str], right: tuple[str, str]) -> float:
        return statistics.median(
            each[left[0]][left[1]] / each[right[0]][right[1]] for each in rounds
        )

    for kind in KINDS:
        if f"recipe{kind}" not in rounds[0]["nest_dist"]:
            continue
        print(f"\nas many times as fast as others{kind}")
        for part, other, its_part, what in (
            ("recipe", "timm", "recipe", "timm on Pillow (goal 2.5)"),
            ("recipe, pixels alone", "timm", "recipe", "timm on Pillow, both without a loader"),
            ("decode, crop, flip", "tensorflow", "decode, crop, flip", "tf.data (goal 1.2)"),
            ("decode, crop, flip", "tensorflow", "the same to uint8", "tf.data to uint8, as ours"),
        ):
            if other in rounds[0]:
                found = ratio((other, its_part), ("nest_dist", part + kind))
                print(f"{part + ': ' + what:<58}{found:>9.2f}")
        share = 1 - ratio(
            ("nest_dist", f"recipe, pixels alone{kind}"), ("nest_dist", f"recipe{kind}")
        )
        print(f"{'share of Grain and Python (goal at most 20%)':<58}{share:>9.1%}")


def scaling(folder: str) -> str:
    """Two worker processes and one in wall time, and what two cores can do at all."""
    command = [sys.executable, HERE / "input_nest_dist.py"]
    done = subprocess.run(
        [*command, "--scaling", folder], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    rates = [(together(command, 1, folder), together(command, 2, folder)) for _ in range(3)]
    ceiling = statistics.median(two / one for one, two in rates)
    return (
        f"two worker processes, as many times as fast as one (goal 1.7): "
        f"{found['two'] / found['one']:.2f} ({found['one']:.0f} and {found['two']:.0f} images/s)\n"
        f"two processes without any pipeline, which share no more than the machine: {ceiling:.2f}"
    )


def together(command: list[typing.Any], count: int, folder: str) -> float:
    """Images a second of several processes that do decoding and pixel work alone, at a time."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, "--bare", folder], **pipes) for _ in range(count)]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in processes)


if __name__ == "__main__":
    main()
