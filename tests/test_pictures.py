"""The picture of example pairs."""

import numpy as np

from gsjax import pictures


def test_boxes_stand_where_the_crops_are():
    original = np.full((80, 160, 3), 255, np.uint8)  # drawn at its own size: 160 is a cell's side
    boxes = np.array([[[10, 20, 30, 40], [40, 90, 20, 50]]], np.float32)
    views = np.stack([np.zeros((8, 8, 3)), np.ones((8, 8, 3))])[None]
    picture = pictures.draw_pairs([original], boxes, views, np.array([[0.25, 1.0]]))
    cell = picture[12 : 12 + 80, 12 : 12 + 160]
    orange, blue = (255, 140, 0), (0, 160, 255)
    for colour, (top, left, height, width) in zip(
        (orange, blue), boxes[0].astype(int), strict=True
    ):
        drawn = np.argwhere((cell == colour).all(axis=-1))
        np.testing.assert_array_equal(drawn.min(axis=0), [top, left])
        np.testing.assert_array_equal(drawn.max(axis=0), [top + height - 1, left + width - 1])
    # both views, black and white, inside their frames
    assert picture[12 + 80, 2 * 12 + 160 + 80].tolist() == [0, 0, 0]
    assert picture[12 + 80, 3 * 12 + 320 + 80].tolist() == [255, 255, 255]


def test_one_row_per_pair():
    images = [np.zeros((20, 30, 3), np.uint8)] * 3
    boxes = np.tile(np.array([0, 0, 10, 10], np.float32), (3, 2, 1))
    views = np.zeros((3, 2, 8, 8, 3))
    one = pictures.draw_pairs(images[:1], boxes[:1], views[:1], np.ones((1, 2)))
    three = pictures.draw_pairs(images, boxes, views, np.ones((3, 2)))
    assert three.shape[0] - 12 == 3 * (one.shape[0] - 12)
