import cv2
import numpy as np

from nest_dist.base.picture_grid import GAP, LINE_HEIGHT
from nest_dist.telemetry import pictures


def test_a_page_shows_every_picture_in_its_place():
    values = (60, 120, 180)
    images = np.stack([np.full((100, 120, 1), value, np.uint8) for value in values])
    page = pictures.page(images, [pictures.Caption([])] * 3)
    step_down, step_right = 100 + GAP, 120 + GAP
    assert page.shape == (2 * step_down + GAP, 2 * step_right + GAP, 3)
    for value, (row, column) in zip(values, [(0, 0), (0, 1), (1, 0)], strict=True):
        top, left = GAP + row * step_down, GAP + column * step_right
        assert (page[top : top + 100, left : left + 120] == value).all()
    assert (page[step_down + GAP :, step_right + GAP :] < 60).all()


def test_a_small_picture_is_enlarged_pixel_by_pixel():
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    page = pictures.page(image, [pictures.Caption([])])
    enlarged = page[GAP:, GAP:][: 8 * 12, : 8 * 12]
    np.testing.assert_array_equal(enlarged[5::12, 7::12, 0], image[0, :, :, 0])


def test_the_last_line_of_a_right_answer_is_green_and_of_a_wrong_one_red():
    images = np.zeros((1, 96, 96, 3), np.uint8)

    def words(right):
        page = pictures.page(images, [pictures.Caption(["true: Käse", "pred: 日本"], right)])
        below = page[GAP + 96 :].astype(int)
        first, last = below[:LINE_HEIGHT], below[LINE_HEIGHT:]
        return [(np.ptp(line[..., 0]), np.ptp(line[..., 1])) for line in (first, last)]

    (first_red, first_green), (red, green) = words(True)
    assert first_red == first_green > 100
    assert green > red
    (first_red, first_green), (red, green) = words(False)
    assert first_red == first_green > 100
    assert red > green


def test_a_page_keeps_its_pixels_as_png():
    sheet = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    data = np.frombuffer(pictures.encoded(sheet, lossless=True), np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), sheet)


def test_a_page_has_room_for_as_many_as_can_be_read():
    assert [pictures.room(side, side) for side in (16, 32, 224, 1024)] == [64, 64, 16, 4]
