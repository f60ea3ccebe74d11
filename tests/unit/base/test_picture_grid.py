import numpy as np

from nest_dist.base import picture_grid
from nest_dist.base.picture_grid import GAP, GREY, LINE_HEIGHT


def test_a_smaller_picture_lies_in_the_middle_of_its_cell_below_the_titles():
    image = np.full((10, 20, 1), 200, np.uint8)
    grid = picture_grid.draw([[picture_grid.Cell(image, [""])]], (30, 40), ["one"])
    assert grid.shape == (GAP + 2 * LINE_HEIGHT + 30 + GAP, GAP + 40 + GAP, 3)
    top, left = GAP + LINE_HEIGHT + 10, GAP + 10
    assert (grid[top : top + 10, left : left + 20] == 200).all()
    assert (grid[GAP + LINE_HEIGHT :] != GREY).all(axis=-1).sum() == 200
    assert (grid[GAP : GAP + LINE_HEIGHT] > 200).any()


def test_a_caption_ends_with_its_cell():
    cells = [
        picture_grid.Cell(np.zeros((9, 30, 3), np.uint8), ["ä very long name of caf\udce9"])
    ] * 2
    grid = picture_grid.draw([cells], (9, 30))
    assert (grid[:, GAP + 30 : GAP + 30 + GAP] == GREY).all()
    assert (grid[:, -GAP:] == GREY).all()
