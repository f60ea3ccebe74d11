"""Areas of the rectangles of a random resized crop: ours, TensorFlow's and timm's.

Run with an interpreter that has `tensorflow-cpu`; without it TensorFlow's rows are left out.
"""

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from nest_dist.data.transforms import crop

SIDES = ((375, 500), (500, 375), (500, 500))
DRAWS = 20_000
AREA = (0.05, 1.0)


def drawn(sampling, sides, aspect):
    cut = crop.RandomResizedCrop(224, AREA, aspect, sampling)
    rng = np.random.Generator(np.random.Philox(1))
    rectangles = [cut.rectangle(*sides, rng) for _ in range(DRAWS)]
    return [height * width for _, _, height, width in rectangles]


def drawn_by_tensorflow(sides):
    import tensorflow as tf

    @tf.function
    def area(number):
        _, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            (*sides, 3),
            tf.zeros([0, 0, 4]),
            seed=tf.stack([number, 1]),
            area_range=AREA,
            min_object_covered=0,
            use_image_if_no_bounding_boxes=True,
        )
        return size[0] * size[1]

    return [int(area(number)) for number in tf.range(DRAWS)]


def main():
    print(f"{'picture':<12}{'drawn by':<14}{'mean':>8}{'median':>8}{'below 0.2':>11}")
    for sides in SIDES:
        contenders = {
            "ours": lambda sides: drawn("tensorflow", sides, (0.75, 1.33)),
            "TensorFlow": drawn_by_tensorflow,
            "ours, as timm": lambda sides: drawn("timm", sides, (3 / 4, 4 / 3)),
        }
        for name, draw in contenders.items():
            try:
                areas = np.array(draw(sides)) / np.prod(sides)
            except ImportError:
                continue
            figures = areas.mean(), np.median(areas), (areas < 0.2).mean()
            height, width = sides
            print(
                f"{f'{height} x {width}':<12}{name:<14}{figures[0]:>8.4f}{figures[1]:>8.4f}"
                f"{figures[2]:>11.4f}"
            )


main()
