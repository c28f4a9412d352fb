"""The picture of example pairs."""

import numpy as np

from gsjax.evaluate import pictures


def test_boxes_stand_where_the_crops_are():
    original = np.full((80, 160, 3), 255, np.uint8)  # drawn at its own size: 160 is a cell's side
    boxes = np.array([[[10, 20, 30, 40], [40, 90, 20, 50], [2, 3, 9, 9]]], np.float32)
    views = [np.zeros((1, 8, 8, 3)), np.ones((1, 8, 8, 3)), np.full((1, 4, 4, 3), 0.5)]
    psi = np.array([[[1.0, 0.25], [1.0, 1.0], [0.0, 0.5]]])
    picture = pictures.draw_views([original], boxes, views, psi)
    cell = picture[12 : 12 + 80, 12 : 12 + 160]
    colors = (255, 140, 0), (0, 160, 255), (60, 170, 80)
    for color, (top, left, height, width) in zip(colors, boxes[0].astype(int), strict=True):
        drawn = np.argwhere((cell == color).all(axis=-1))
        np.testing.assert_array_equal(drawn.min(axis=0), [top, left])
        np.testing.assert_array_equal(drawn.max(axis=0), [top + height - 1, left + width - 1])
    # the views inside their frames: black, white, and gray of half the size
    assert picture[12 + 80, 2 * 12 + 160 + 80].tolist() == [0, 0, 0]
    assert picture[12 + 80, 3 * 12 + 320 + 80].tolist() == [255, 255, 255]
    assert picture[12 + 40, 4 * 12 + 480 + 40].tolist() == [128, 128, 128]
    assert picture[12 + 120, 4 * 12 + 480 + 120].tolist() == [255, 255, 255]


def test_one_row_per_image():
    images = [np.zeros((20, 30, 3), np.uint8)] * 3
    boxes = np.tile(np.array([0, 0, 10, 10], np.float32), (3, 2, 1))
    views = [np.zeros((3, 8, 8, 3))] * 2
    one = pictures.draw_views(images[:1], boxes[:1], [v[:1] for v in views], np.ones((1, 2, 2)))
    three = pictures.draw_views(images, boxes, views, np.ones((3, 2, 2)))
    assert three.shape[0] - 12 == 3 * (one.shape[0] - 12)


GREEN, RED, GRAY = (0, 140, 60), (205, 35, 35), (130, 130, 130)


def _frames(picture):
    """The colors of the frames along the middle line, from left to right, without repeats."""
    line = [tuple(pixel) for pixel in picture[picture.shape[0] // 3].tolist()]
    colored = [pixel for pixel in line if pixel in (GREEN, RED, GRAY)]
    return colored[:: 2 * 4]  # two sides of four pixels a frame


def test_a_ranking_shows_the_marks_in_order():
    generator = np.random.default_rng(0)
    results = [np.full((40 + i, 60, 3), 10 * i, np.uint8) for i in range(12)]
    names = generator.choice(["right", "wrong", "junk"], size=12).tolist()
    query = np.full((50, 50, 3), 255, np.uint8)
    picture = pictures.draw_ranking(query, results, names)
    assert picture.dtype == np.uint8
    colors = {"right": GREEN, "wrong": RED, "junk": GRAY}
    assert _frames(picture) == [colors[name] for name in names[:10]]
    line = picture[picture.shape[0] // 3, :, 0].tolist()
    places = [line.index(10 * i) for i in range(1, 10)]
    assert places == sorted(places) and 110 not in line
    assert len(_frames(pictures.draw_ranking(query, results[:3], names[:3]))) == 3


def test_without_colors_a_ranking_still_tells_right_from_wrong():
    image = np.zeros((30, 30, 3), np.uint8)
    drawn = [pictures.draw_ranking(image, [image], [mark]) for mark in ("right", "wrong", "junk")]
    labels = [(picture[-30:] < 250).any(axis=-1) for picture in drawn]  # ink below the result
    for i in range(3):
        assert (labels[i] != labels[i - 1]).sum() > 50
    columns = np.flatnonzero(labels[1].any(axis=0))
    assert (np.diff(columns) > 4).sum() == 3  # gaps between the word query, 1, the sign and wrong


def test_the_box_stands_in_the_query():
    query = np.full((280, 200, 3), 255, np.uint8)  # drawn at half its size
    result = np.zeros((10, 10, 3), np.uint8)
    picture = pictures.draw_ranking(query, [result], ["right"], box=(20, 40, 120, 240))
    drawn = np.argwhere((picture == (255, 140, 0)).all(axis=-1)) - 16  # the gap and the frame
    np.testing.assert_array_equal(drawn.min(axis=0), [20, 10])
    np.testing.assert_array_equal(drawn.max(axis=0), [119, 59])
    assert not (pictures.draw_ranking(query, [result], ["right"]) == (255, 140, 0)).all(-1).any()


def test_a_result_of_any_shape_has_its_place():
    query = np.full((20, 20, 3), 255, np.uint8)
    shapes = [(10, 1000), (1000, 2), (1, 1)]
    results = [np.full((*shape, 3), (9, 77, 200), np.uint8) for shape in shapes]
    picture = pictures.draw_ranking(query, results, ["wrong"] * 3)
    columns = np.flatnonzero((picture == (9, 77, 200)).all(axis=-1).any(axis=0))
    widths = [len(part) for part in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)]
    assert widths == [280, 1, 140]


def test_words_stand_below_and_make_room():
    image = np.zeros((30, 30, 3), np.uint8)
    words = ["asked", "", "i" * 20, "W" * 40]
    marks = ["", "right", "wrong"]
    drawn = pictures.draw_ranking(image, [image] * 3, marks, words=words)
    assert _frames(drawn) == [GREEN, RED]  # none around the first
    label = drawn[-30:]
    assert (label < 250).any(axis=-1).any(axis=0)[-100:].any()
    ink = np.flatnonzero((label == RED).all(axis=-1).any(axis=0))
    frame = np.flatnonzero((drawn[60] == RED).all(axis=-1))
    assert frame.min() < ink.min() and ink.max() < drawn.shape[1] - 12
    # Of the last word twenty letters are drawn.
    cut = pictures.draw_ranking(image, [image] * 3, marks, words=[*words[:3], "W" * 20])
    np.testing.assert_array_equal(drawn, cut)


def test_pictures_stand_below_each_other():
    first, second = np.zeros((4, 9, 3), np.uint8), np.full((5, 6, 3), 7, np.uint8)
    stacked = pictures.stack([first, second])
    np.testing.assert_array_equal(stacked[:4], first)
    np.testing.assert_array_equal(stacked[4:, :6], second)
    assert stacked.shape == (9, 9, 3) and (stacked[4:, 6:] == 255).all()
