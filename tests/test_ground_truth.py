"""Ground truth files: the real ones, a small one, hostile and broken ones."""

import copyreg
import json
import os
import pickle
import shutil

import numpy as np
import pytest

from gsjax.errors import UserError
from gsjax.evaluate import ground_truth


def content():
    """Four pictures and two queries."""
    return {
        "imlist": ["a", "b", "c", "d"],
        "qimlist": ["q", "r"],
        "gnd": [
            {"bbx": [0, 1.5, 20, 30], "easy": [0], "hard": [3, 1], "junk": []},
            {"bbx": (5, 5, 6, 6), "easy": [], "hard": [2], "junk": [1]},
        ],
    }


def write(folder, data):
    """Writes bytes as they are, and anything else as a pickle."""
    if not isinstance(data, bytes):
        data = pickle.dumps(data)
    (folder / "gnd_own.pkl").write_bytes(data)


def refusal(folder):
    with pytest.raises(UserError) as caught:
        ground_truth.load(folder, "own")
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder / "gnd_own") in message
    return message


@pytest.mark.parametrize(
    ("name", "size", "first"),
    [
        ("roxford5k", 4993, ("all_souls_000013", (136.5, 34.1, 648.5, 955.7), 65, 38, 33)),
        ("rparis6k", 6322, None),
    ],
)
def test_the_real_sets(shared_data, name, size, first):
    folder = shared_data / "retrieval" / name
    truth = ground_truth.load(folder, name)
    assert (len(truth.names), len(truth.queries)) == (size, 70)
    assert not {query.name for query in truth.queries} & set(truth.names)
    with open(folder / f"gnd_{name}.pkl", "rb") as file:
        raw = pickle.load(file)
    for query, answer in zip(truth.queries, raw["gnd"], strict=True):
        assert list(query.box) == answer["bbx"]
        for key in ("easy", "hard", "junk"):
            np.testing.assert_array_equal(getattr(query, key), answer[key])
    if first:
        query = truth.queries[0]
        sizes = len(query.easy), len(query.hard), len(query.junk)
        assert (query.name, query.box, *sizes) == first


def test_json_equals_pickle_and_the_pictures_are_there(shared_data, tmp_path):
    folder = shared_data / "retrieval" / "rmini"
    truth = ground_truth.load(folder, "rmini")
    shutil.copy(folder / "gnd_rmini.json", tmp_path)
    from_json = ground_truth.load(str(tmp_path), "rmini")
    assert len(truth.queries) == 8
    assert from_json.names == truth.names
    for one, other in zip(from_json.queries, truth.queries, strict=True):
        assert (one.name, one.box) == (other.name, other.box)
        for key in ("easy", "hard", "junk"):
            np.testing.assert_array_equal(getattr(one, key), getattr(other, key))
            assert getattr(one, key).dtype == np.int64
    database, queries = ground_truth.image_paths(folder, truth)
    assert [path.stem for path in database] == list(truth.names)
    assert [path.stem for path in queries] == [query.name for query in truth.queries]
    assert all(path.is_file() for path in database + queries)


def test_the_pickle_comes_first(tmp_path):
    write(tmp_path, content())
    (tmp_path / "gnd_own.json").write_text(json.dumps(content() | {"imlist": list("wxyz")}))
    assert ground_truth.load(tmp_path, "own").names == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("difficulty", "positives", "junk"),
    [("easy", {1, 2}, {5, 3, 4}), ("medium", {1, 2, 3, 4}, {5}), ("hard", {3, 4}, {5, 1, 2})],
)
def test_difficulties(difficulty, positives, junk):
    assert difficulty in ground_truth.DIFFICULTIES
    lists = np.array([1, 2]), np.array([3, 4]), np.array([5])
    query = ground_truth.Query("q", (0, 0, 1, 1), *lists)
    got = ground_truth.positives_and_junk(query, difficulty)
    assert [set(part.tolist()) for part in got] == [positives, junk]
    empty = np.array([], np.int64)
    nothing = ground_truth.positives_and_junk(query._replace(easy=empty, hard=empty), difficulty)
    assert nothing[0].shape == (0,) and nothing[0].dtype == np.int64


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_a_command_does_not(tmp_path, protocol):
    marker = tmp_path / "marker"
    data = pickle.dumps(content() | {"more": _Touch(marker)}, protocol)
    write(tmp_path, data)
    assert "the Python object 'posix.system'" in refusal(tmp_path)
    assert not marker.exists()
    pickle.loads(data)  # it would have
    assert marker.exists()


def test_a_pickle_through_the_extension_registry_does_not_run(tmp_path):
    marker = tmp_path / "marker"
    copyreg.add_extension("posix", "system", 240)
    try:
        data = pickle.dumps(_Touch(marker), 2)
        assert b"\x82\xf0" in data and b"system" not in data  # opcode EXT1 with the number 240
        write(tmp_path, data)
        assert "extension registry" in refusal(tmp_path)
        assert not marker.exists()
        pickle.loads(data)  # and from now on the object comes from a cache, past find_class
        marker.unlink()
        assert "extension registry" in refusal(tmp_path)
        assert not marker.exists()
    finally:
        copyreg.remove_extension("posix", "system", 240)


def test_a_persistent_id_is_refused(tmp_path):
    write(tmp_path, b"Pname\n.")
    assert "a persistent id" in refusal(tmp_path)


def test_arrays_in_a_pickle_are_refused_with_the_way_out(tmp_path):
    data = content()
    data["gnd"][0]["easy"] = np.array([0])
    write(tmp_path, data)
    message = refusal(tmp_path)
    assert "numpy" in message and "convert it to JSON as gnd_own.json" in message


@pytest.mark.parametrize("kept", [0, 1, 2, 20, 0.5, -1])
def test_a_truncated_pickle(tmp_path, kept):
    data = pickle.dumps(content())
    write(tmp_path, data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    assert "damaged or truncated" in refusal(tmp_path)


@pytest.mark.parametrize("data", [b"", b'{"imlist": ["a"', b"\xff\xfe\xfa", b"[" * 100_000])
def test_damaged_json(tmp_path, data):
    (tmp_path / "gnd_own.json").write_bytes(data)
    assert "damaged or truncated" in refusal(tmp_path)


def test_random_bytes_end_in_one_line(tmp_path):
    generator = np.random.default_rng(0)
    data = bytearray(pickle.dumps(content()))
    refused = 0
    for _ in range(300):
        broken = data.copy()
        broken[generator.integers(len(data))] = generator.integers(256)
        write(tmp_path, bytes(broken))
        try:
            ground_truth.load(tmp_path, "own")
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 100  # in the others a letter or a number changed, or nothing


def broken(path, value):
    """The good content with `value` put at `path`, or without it."""
    data = content()
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "must contain a dict"),
        (broken(["imlist"], None), "'imlist' must be"),
        (broken(["imlist"], []), "'imlist' must be a non-empty list"),
        (broken(["qimlist"], "qr"), "'qimlist' must be"),
        (broken(["gnd"], None), "'gnd' must be"),
        (broken(["imlist", 2], 7), "entry 2 of 'imlist' is not an image name"),
        (broken(["qimlist", 1], ""), "entry 1 of 'qimlist' is not an image name"),
        (broken(["gnd", 1], None), "2 names in 'qimlist' but 1 entries in 'gnd'"),
        (broken(["gnd", 1], "r"), "query 1 ('r'): its entry in 'gnd' must be a dict"),
        (broken(["gnd", 0, "junk"], None), "query 0 ('q'): its entry in 'gnd' must be a dict"),
        (broken(["gnd", 0, "easy"], 3), "query 0 ('q'): its entry in 'gnd' must be a dict"),
        (broken(["gnd", 0, "bbx"], [1, 2, 3]), "query 0 ('q'): 'bbx' must be four numbers"),
        (broken(["gnd", 0, "bbx", 0], "1"), "query 0 ('q'): 'bbx' must be four numbers"),
        (broken(["gnd", 0, "bbx", 2], float("inf")), "'bbx' must be four numbers"),
        (broken(["gnd", 0, "bbx", 2], float("nan")), "'bbx' must be four numbers"),
        (broken(["gnd", 0, "bbx", 2], 10**400), "'bbx' must be four numbers"),
        (broken(["gnd", 0, "bbx"], [5, 0, 5, 9]), "x0, y0, x1, y1 = 5, 0, 5, 9 is empty"),
        (broken(["gnd", 0, "bbx"], [0, 9, 5, 8]), "query 0 ('q'): its box"),
        (broken(["gnd", 1, "hard"], [4]), "query 1 ('r'): 'hard' must contain indices from 0 to 3"),
        (broken(["gnd", 1, "junk"], [-1]), "'junk' must contain indices from 0 to 3, not -1"),
        (broken(["gnd", 1, "easy"], [0.0]), "'easy' must contain indices from 0 to 3, not 0.0"),
        (broken(["gnd", 1, "easy"], [True]), "'easy' must contain indices"),
        (broken(["gnd", 1, "easy"], [1]), "query 1 ('r'): image 1 appears twice"),
    ],
)
def test_a_wrong_structure_is_named(tmp_path, data, message):
    write(tmp_path, data)
    assert message in refusal(tmp_path)


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no gnd_own.pkl or gnd_own.json in .*cmp.felk.cvut.cz"):
        ground_truth.load(tmp_path / "nowhere", "own")
    (tmp_path / "gnd_own.json").mkdir()
    assert "cannot be read" in refusal(tmp_path)


def test_missing_pictures_are_counted(tmp_path):
    write(tmp_path, content())
    truth = ground_truth.load(tmp_path, "own")
    with pytest.raises(UserError, match="no image folder .*jpg: .*VGG"):
        ground_truth.image_paths(tmp_path, truth)
    (tmp_path / "jpg").mkdir()
    for name in "acdq":
        (tmp_path / "jpg" / f"{name}.jpg").touch()
    with pytest.raises(UserError, match=r"jpg lacks 2 of 6 images, such as 'b.jpg'") as caught:
        ground_truth.image_paths(tmp_path, truth)
    assert "\n" not in str(caught.value)
    for name in "br":
        (tmp_path / "jpg" / f"{name}.jpg").touch()
    database, queries = ground_truth.image_paths(tmp_path, truth)
    assert [path.name for path in database] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert [path.name for path in queries] == ["q.jpg", "r.jpg"]
