"""The job `embed`: rows in Parquet files, the same bytes however often it is interrupted."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from evaluations import evaluate
from PIL import Image, ImageOps
from trainings import PROGRAM, command, finish, together

import gsjax
from gsjax.data import photos
from gsjax.errors import UserError
from gsjax.evaluate import embed, embeddings
from gsjax.evaluate.embeddings import Embeddings, Layout

SMALL_PARTS = {"embed__rows_per_file": "8", "features__batch_size": "8"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 30 pictures, of which number 3 and 17 are damaged."""
    folder = tmp_path_factory.mktemp("pictures") / "mine"
    (folder / "deep").mkdir(parents=True)
    for i, tile in enumerate(photos.tiles("test", 20)[0][:30]):
        Image.fromarray(tile).save(folder / f"deep/{i:02}.png")
    for i in (3, 17):
        (folder / f"deep/{i:02}.png").write_bytes(b"damaged")
    return folder


@pytest.fixture
def run(workdir, pictures):
    """Embeds the pictures and returns the folder of the embeddings."""

    def embedded(**overrides):
        images = {"embed__source": "folder", "embed__data_dir": pictures} | SMALL_PARTS
        evaluate(embed, workdir, **(images | overrides))
        return workdir / "embeddings" / "mine"

    return embedded


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_rows_are_those_of_the_python_interface(run, workdir, pictures, capsys):
    folder = run()
    table = pq.read_table(folder)  # any Parquet reader skips the other files
    assert table.column_names == ["index", "path", "label", "valid", "embedding"]
    damaged = np.isin(np.arange(30), [3, 17])
    np.testing.assert_array_equal(table["index"], np.arange(30))
    np.testing.assert_array_equal(table["label"], 30 * [-1])
    np.testing.assert_array_equal(table["valid"], ~damaged)
    paths = sorted(map(str, (pictures / "deep").iterdir()))
    assert table["path"].to_pylist() == paths
    rows = np.array(table["embedding"].to_pylist(), np.float32)
    expected = gsjax.load_encoder(workdir).encode([paths[i] for i in np.flatnonzero(~damaged)])
    np.testing.assert_allclose(rows[~damaged], expected, rtol=1e-5, atol=1e-5)
    assert (rows[damaged] == 0).all()
    assert (folder / "_damaged.txt").read_text() == f"{paths[3]}\n{paths[17]}\n"
    assert [len(pq.read_table(f)) for f in sorted(folder.glob("*.parquet"))] == [8, 8, 8, 6]
    output = capsys.readouterr().out
    assert "2 of 30 images cannot be decoded" in output and "30 x 32 embeddings" in output


def test_labels_and_the_images_of_pre_training(workdir, capsys):
    evaluate(embed, workdir, embed__split="test", embed__dtype="float16")
    saved = Embeddings(workdir / "embeddings/photos_test")
    assert saved.num_rows == saved.num_valid == 2000 and saved.num_features == 32
    (columns,) = saved.columns("label", "embedding", "path")
    assert columns["embedding"].dtype == np.float16 and set(columns["path"]) == {""}
    np.testing.assert_array_equal(columns["label"], photos.tiles("test", 16)[1])


def test_an_interrupted_job_resumes_to_the_same_bytes(run, capsys):
    whole = contents(run())
    folder = run()
    assert contents(folder) == whole and "nothing to do" in capsys.readouterr().out
    (folder / "part-00001.parquet").unlink()
    (folder / "part-00003.parquet").rename(folder / "part-00003.parquet.new")
    (folder / "part-00003.parquet.new").write_bytes(b"half")
    before = (folder / "part-00000.parquet").stat().st_mtime_ns
    run()
    assert contents(folder) == whole
    assert (folder / "part-00000.parquet").stat().st_mtime_ns == before
    assert "resuming: 2 of 4 files are complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes", [{"features__interpolation": "bicubic"}, {"embed__dtype": "float16"}]
)
def test_other_settings_replace_all_of_it(run, capsys, changes):
    before = contents(run())
    after = contents(run(**changes))
    assert before.keys() == after.keys()
    same = [name for name in before if before[name] == after[name]]
    assert same == ["_damaged.txt"]
    assert "replacing the embeddings" in capsys.readouterr().out


def test_incomplete_embeddings_are_refused(run):
    folder = run()
    with pytest.raises(UserError, match="holds no embeddings: run the job embed"):
        Embeddings(folder.parent / "other")
    about = folder / "_embeddings.json"
    about.write_text(about.read_text().replace('"complete": true', '"complete": false'))
    with pytest.raises(UserError, match="is incomplete: rerun the job embed"):
        Embeddings(folder)
    about.write_text("{")
    with pytest.raises(UserError, match="is damaged: remove"):
        Embeddings(folder)


def test_a_damaged_part_is_named(run):
    folder = run()
    (folder / "part-00002.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(UserError, match=r"part-00002.parquet cannot be read .*rerun the job embed"):
        list(Embeddings(folder).columns("index"))


def test_npz_has_the_same_columns(run, workdir):
    table = pq.read_table(run())
    run(embed__format="npz")
    assert not (workdir / "embeddings/mine").exists()
    with np.load(workdir / "embeddings/mine.npz", allow_pickle=False) as saved:
        assert set(saved) == set(table.column_names)
        for name in ("index", "label", "valid", "path"):
            np.testing.assert_array_equal(saved[name], table[name].to_pylist())
        np.testing.assert_array_equal(saved["embedding"], np.array(table["embedding"].to_pylist()))


def test_with_flip_a_mirror_image_has_the_same_embedding(workdir, tmp_path):
    for i, tile in enumerate(photos.tiles("test", 16)[0][:4]):
        Image.fromarray(tile).save(tmp_path / f"{i}_a.png")
        ImageOps.mirror(Image.fromarray(tile)).save(tmp_path / f"{i}_b.png")
    found = {}
    for flip in ("false", "true"):
        own = {"embed__source": "folder", "embed__data_dir": tmp_path, "embed__name": "x" + flip}
        evaluate(embed, workdir, embed__flip=flip, **own)
        (columns,) = Embeddings(workdir / "embeddings" / f"x{flip}").columns("embedding")
        found[flip] = columns["embedding"]
    plain, both = found["false"], found["true"]
    mean = (plain[0::2] + plain[1::2]) / 2
    np.testing.assert_allclose(both[0::2], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both[1::2], mean, rtol=1e-5, atol=1e-6)
    assert abs(plain[0::2] - plain[1::2]).max() > 1e-3


def test_a_list_of_files(run, workdir, pictures, tmp_path):
    names = ["deep/05.png", "deep/03.png", str(pictures / "deep/01.png"), "deep/nowhere.png"]
    (tmp_path / "some.txt").write_text("\n".join(names) + "\n\n")
    run(embed__source="list", embed__split=tmp_path / "some.txt")
    saved = Embeddings(workdir / "embeddings" / embed._name("some", str(tmp_path / "some.txt")))
    (columns,) = saved.columns("path", "valid", "embedding")
    expected = [str(pictures / "deep" / name.rsplit("/", 1)[1]) for name in names]
    assert columns["path"].tolist() == expected
    assert columns["valid"].tolist() == [True, False, True, False]
    whole = np.concatenate([c["embedding"] for c in Embeddings(run()).columns("embedding")])
    np.testing.assert_allclose(columns["embedding"][[0, 2]], whole[[5, 1]], rtol=1e-5, atol=1e-6)


def test_values_that_float16_cannot_hold(run, monkeypatch):
    whole = embed.create_embed_fn
    monkeypatch.setattr(
        embed, "create_embed_fn", lambda *a: lambda v, images: 1e6 * whole(*a)(v, images)
    )
    with pytest.raises(UserError, match="embed.dtype=float16 cannot hold"):
        run(embed__dtype="float16")


def test_nothing_but_damaged_images(workdir, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="none of the images can be decoded"):
        evaluate(embed, workdir, embed__source="folder", embed__data_dir=tmp_path / "bad")


@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 24])
def test_the_layout_covers_every_row_once(num_rows):
    layout = Layout(num_rows, 8)
    parts = [layout.rows_of(part) for part in range(layout.num_parts)]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(num_rows))
    assert all(len(part) for part in parts)


def test_rows_are_read_in_chunks_without_the_damaged(run):
    saved = Embeddings(run())
    valid = np.setdiff1d(np.arange(30), [3, 17])
    whole = np.concatenate([c["embedding"] for c in saved.columns("embedding")])[valid]
    for num_rows in (1, 5, 8, 100):
        for first in (0, 1, 7, 20, 27):
            chunks = list(saved.chunks(num_rows, first))
            assert all(len(chunk.indices) == num_rows for chunk in chunks[:-1])
            rows, indices = (np.concatenate(column) for column in zip(*chunks, strict=True))
            np.testing.assert_array_equal(indices, valid[first:])
            np.testing.assert_array_equal(rows, whole[first:])
    some = np.array([29, 0, 8, 8, 3])
    assert saved.at(some, "index")["index"].tolist() == some.tolist()


@pytest.mark.slow
def test_two_hosts_write_parts_of_one_folder(run, workdir, pictures):
    alone = np.concatenate([c["embedding"] for c in Embeddings(run()).columns("embedding")])
    shutil.rmtree(workdir / "embeddings")
    images = {"embed.source": "folder", "embed.data_dir": pictures, "embed.rows_per_file": 8}
    arguments = [f"--config.{key}={value}" for key, value in images.items()]
    arguments += ["--job=embed", "--config.features.batch_size=16"]
    outputs = [finish(process) for process in together(workdir, 2, *arguments)]
    assert "30 x 32 embeddings" in outputs[0]
    saved = Embeddings(workdir / "embeddings/mine")
    assert saved.about["num_damaged"] == 2
    rows = np.concatenate([c["embedding"] for c in saved.columns("embedding")])
    np.testing.assert_allclose(rows, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_killed_five_times(workdir, shared_data, tmp_path):
    """1,530 files of Caltech-101, with ten files of rows."""
    data, info = tfds.load(
        "caltech101",
        split="train",
        data_dir=shared_data,
        decoders={"image": tfds.decode.SkipDecoding()},
        with_info=True,
        download=False,
    )
    images = tmp_path / "caltech"
    images.mkdir()
    for number, example in enumerate(tfds.as_numpy(data)):
        (images / f"{number:04}.jpg").write_bytes(example["image"])
    arguments = [
        "--job=embed",
        "--config.embed.source=folder",
        f"--config.embed.data_dir={images}",
        "--config.embed.rows_per_file=160",
        "--config.features.batch_size=32",
    ]
    finish(command(workdir, *arguments, program=PROGRAM))
    folder = workdir / "embeddings/caltech"
    whole = contents(folder)
    assert len(whole) == 11 and Embeddings(folder).num_valid == info.splits["train"].num_examples
    shutil.rmtree(folder)
    for kill in range(5):
        process = command(workdir, *arguments)
        while len(list(folder.glob("*.parquet"))) <= kill and process.poll() is None:
            pass
        process.kill()
        process.communicate()
        assert process.returncode == -9
        assert not embeddings.describe(folder)["complete"]
    finish(command(workdir, *arguments))
    assert contents(folder) == whole
