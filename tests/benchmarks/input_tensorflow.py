"""The official pipeline's decode, random resized crop and flip, by tf.data with one thread.

It gives float32 images between 0 and 1; ours gives uint8, so that is measured besides.
"""

import json
import os
import pathlib
import sys
import time

os.sched_setaffinity(0, {0})

import tensorflow as tf  # noqa: E402

SIDE = 224
REPEATS = 3


def prepared(number, picture):
    seeds = tf.random.experimental.stateless_split(tf.stack([number, 0]), 2)
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.io.extract_jpeg_shape(picture),
        tf.zeros([0, 0, 4]),
        seed=seeds[0],
        area_range=(0.05, 1.0),
        min_object_covered=0,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], 0)
    image = tf.image.decode_and_crop_jpeg(picture, window, channels=3)
    image = tf.image.resize(tf.cast(image, tf.float32) / 255, (SIDE, SIDE))
    return tf.image.stateless_random_flip_left_right(image, seeds[1])


def main():
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    pictures = [path.read_bytes() for path in sorted(pathlib.Path(sys.argv[1]).glob("*.jpg"))]
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    # As often as ours in a round, so that starting is no larger a part of it.
    data = tf.data.Dataset.from_tensor_slices(pictures).cache().repeat(REPEATS).enumerate()
    data = data.map(lambda number, each: prepared(tf.cast(number, tf.int32), each))
    as_uint8 = data.map(lambda image: tf.saturate_cast(255 * image, tf.uint8))
    for _ in sys.stdin:
        times = {}
        for name, kind in (("decode, crop, flip", data), ("the same to uint8", as_uint8)):
            start = time.process_time()
            for batch in kind.batch(32).with_options(options):
                batch.numpy()
            times[name] = 1000 * (time.process_time() - start) / len(pictures) / REPEATS
        print(json.dumps(times), flush=True)


main()
