"""The job `diagnostics` and its parts, against slow loops and scikit-learn."""

import dataclasses
import functools
import json
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from trainings import PLAIN

from gsjax import augment, losses
from gsjax.config import per_view, settings
from gsjax.data import input_pipeline, photos, sources
from gsjax.errors import UserError
from gsjax.evaluate import diagnostics, evaluation, pairs, results
from gsjax.evaluate.encoder import Pretrained
from gsjax.evaluate.features import Features
from gsjax.runtime import parallel
from gsjax.train import step
from gsjax.train.pretrain import pretrain

MODEL = {
    "encoder.name": "toy",
    "encoder.width": "4",
    "data.image_size": "16",
    "projector.hidden_dim": "16",
    "projector.out_dim": "8",
    "predictor.hidden_dim": "6",
    "features.batch_size": "64",
}
UNTRAINED = MODEL | {"checkpoint.load": "none"}
SIMSIAM = {"method": "simsiam", "projector.last_bn": "true"}


def configured(overrides):
    config = settings.load(None)
    settings.override(config, overrides)
    return settings.check(config)


def write_pictures(folder, n):
    """Tiles of the photographs, of changing ratio."""
    folder.mkdir(parents=True)
    for i, tile in enumerate(photos.tiles("test", 24)[0][:: 2000 // n][:n]):
        Image.fromarray(tile[: 24 - i % 5]).save(folder / f"{i:03}.png")


def unlabeled(folder):
    return {
        "data.source": "folder",
        "data.data_dir": str(folder),
        "data.split": "",
        "data.labeled_split": "",
        "data.test_split": "",
    }


def run(config, workdir):
    diagnostics.run(config, str(workdir))
    return results.read(workdir / "results/diagnostics.json")


def unit(row):
    return row / np.sqrt(sum(x * x for x in row))


def slow_ioa(one, other):
    """Share of the pixels of a box that lie in another one; sides are whole pixels."""
    rows = [y for y in range(int(one[0]), int(one[0] + one[2])) if 0 <= y - other[0] < other[2]]
    columns = [x for x in range(int(one[1]), int(one[1] + one[3])) if 0 <= x - other[1] < other[3]]
    return len(rows) * len(columns) / (one[2] * one[3])


LOCAL = PLAIN | {"crops.local_views": "2", "crops.local_size": "8"}
# With color jitter, too.
BYOL = {"method": "byol", "predictor.hidden_dim": "6", "augment.blur": "1.0,0.1"}


@pytest.mark.parametrize(
    "overrides", [LOCAL, PLAIN | SIMSIAM, BYOL], ids=["simclr with local views", "simsiam", "byol"]
)
def test_pairs_are_those_of_the_training_and_of_its_loss(tmp_path, overrides):
    """One picture at a time: crop, augmentation, modules, distance, IoA and psi."""
    changes = {"similarity.threshold": "0.7", "features.batch_size": "16", **overrides}
    config = configured(UNTRAINED | changes)
    source = sources.open_source(config.data, "test", labeled=True)
    with evaluation.open_evaluation(config, str(tmp_path), "diagnostics", heads=True) as job:
        # Running statistics other than the initial ones, so that the mode of BatchNorm matters.
        keys = iter(jax.random.split(jax.random.key(3), 500))
        method, params, extra = job.encoder.pretrained
        extra = jax.tree.map(lambda x: x + 0.1 * jax.random.uniform(next(keys), x.shape), extra)
        encoder = dataclasses.replace(job.encoder, pretrained=Pretrained(method, params, extra))
        drawn = pairs.draw(encoder, config, source, 30)
        scores, details = pairs.measure(drawn, pairs.graded_settings(config))
    assert len(drawn.indices) == 30 == len(set(drawn.indices.tolist()))
    drawing = config.copy_and_resolve_references()
    with drawing.unlocked():
        drawing.batch_size = 10
    batches = list(input_pipeline.train_batches(source, drawing, 0, 3, local_views=True))
    names = ["global", "local"] if "local" in batches[0] else ["global"]
    views = [
        np.concatenate([batch[name].images[:, v] for batch in batches])
        for name in names
        for v in range(2)
    ]
    boxes = np.concatenate(
        [np.concatenate([batch[name].boxes for name in names], axis=1) for batch in batches]
    )
    np.testing.assert_array_equal(drawn.indices, np.concatenate([b["index"] for b in batches]))
    np.testing.assert_array_equal(drawn.boxes, boxes)

    _, key = step.keys(config)

    augmentations = per_view.augmentations(config.augment, len(views))
    online = {"params": params, "batch_stats": extra["batch_stats"]}

    @functools.partial(jax.jit, static_argnums=(2,))
    def outputs_of(view, view_key, number):
        """The output of each trained network and of the projector that targets come from."""
        own = augmentations[number]
        images = augment.augment(view_key[None], view[None], own, *step.pixels(config))
        outputs = []
        for whole in (online, extra.get("target", online)):
            x = images
            for name, module in method.networks.items():
                if name in whole["params"]:
                    variables = {kind: part[name] for kind, part in whole.items()}
                    x = module.apply(variables, x, train=False)
                    x = x.pooled if name == "encoder" else x
                    outputs.append((name, x[0]))
        return [outputs[len(method.networks) - 1][1], dict(outputs)["projector"]]

    distance, ioa, embeddings = [], [], []
    for i in range(30):
        view_keys = jax.random.split(jax.random.fold_in(key, i), len(views))
        outputs = [outputs_of(view[i], view_keys[v], v) for v, view in enumerate(views)]
        anchors = [unit(np.asarray(output[0], np.float64)) for output in outputs]
        targets = [unit(np.asarray(output[1], np.float64)) for output in outputs]
        embeddings += targets[:2]
        for a, b in [(a, b) for a in range(len(views)) for b in (0, 1) if a != b]:
            distance.append(np.sqrt(((anchors[a] - targets[b]) ** 2).sum()))
            ioa.append(slow_ioa(boxes[i, a], boxes[i, b]))
    distance, ioa = np.array(distance), np.array(ioa)
    psi = np.minimum(ioa / 0.7, 1)
    v, w = losses.pairs(len(views), 2)
    ours = np.linalg.norm(drawn.anchor[:, v] - drawn.target[:, w], axis=-1).ravel()
    np.testing.assert_allclose(ours, distance, atol=1e-4)
    expected = {
        "calibration_error": np.mean(np.abs(distance - (1 - psi))),
        "rank_correlation": scipy.stats.spearmanr(ioa, distance).statistic,
        "positive_distance": distance.mean(),
        "embedding_std_sqrt_d": np.std(embeddings, axis=0).mean() * np.sqrt(8),
    }
    for name, value in expected.items():
        assert scores[f"diagnostics/{name}"] == pytest.approx(value, abs=2e-3), name
    histogram = [0] * 20
    for value in ioa:
        histogram[min(int(value * 20 + 1e-6), 19)] += 1
    assert details["ioa_histogram"] == histogram
    assert details["psi_histogram"][-1] == (psi > 0.95 + 1e-6).sum()
    # The graded loss of SimSiam is the mean square of what the calibration error is of.
    p, z = (jnp.asarray(part, jnp.float32) for part in (drawn.anchor, drawn.target))
    graded = jnp.ones((30, len(views), 2)).at[:, v, w].set(psi.reshape(30, -1))
    loss = losses.siamese(p, z, graded)
    assert float(loss) == pytest.approx(np.mean((distance - (1 - psi)) ** 2), abs=1e-4)


def test_a_baseline_is_held_against_the_default_threshold():
    generator = np.random.default_rng(0)
    boxes = generator.integers(1, 20, (40, 2, 4)).astype(np.float32)
    # Distances on both sides of 1 - psi, and other ones there than back.
    anchor, target = at_distances(generator.uniform(0, 1.5, (40, 2)))
    drawn = pairs.Pairs(np.arange(40), boxes, anchor, target)

    def measure(measure, threshold):
        changes = {"similarity.measure": measure, "similarity.threshold": threshold}
        return pairs.measure(drawn, pairs.graded_settings(configured(MODEL | changes)))

    ioa, baseline, iou = measure("ioa", "0.5"), measure("none", "0.9"), measure("iou", "0.9")
    assert baseline == ioa
    errors = []
    for (a, b), (p_a, p_b), (z_a, z_b) in zip(boxes, anchor, target, strict=True):
        errors.append(abs(np.linalg.norm(p_a - z_b) - 1 + min(slow_ioa(a, b) / 0.5, 1)))
        errors.append(abs(np.linalg.norm(p_b - z_a) - 1 + min(slow_ioa(b, a) / 0.5, 1)))
    error = ioa[0]["diagnostics/calibration_error"]
    assert error == pytest.approx(np.mean(errors), abs=1e-6)
    # IoU has other targets, but stands on the same axis.
    assert iou[1]["ioa_histogram"] == ioa[1]["ioa_histogram"]
    shared = np.array([slow_ioa(a, b) * a[2] * a[3] for a, b in boxes])
    areas = (boxes[..., 2] * boxes[..., 3]).sum(axis=1)
    asked = 1 - np.minimum(shared / (areas - shared) / 0.9, 1)
    distance = np.linalg.norm(anchor - target[:, ::-1], axis=-1)
    assert iou[0]["diagnostics/calibration_error"] == pytest.approx(
        np.abs(distance - asked[:, None]).mean(), abs=1e-6
    )


def at_distances(distance, dim=5):
    """Unit vectors anchor, target [n, 2, dim] with |anchor_i - target_j| as given, [n, 2]."""
    generator = np.random.default_rng(0)
    anchor = generator.normal(size=(*distance.shape, dim))
    anchor /= np.linalg.norm(anchor, axis=-1, keepdims=True)
    other = generator.normal(size=anchor.shape)
    other -= (other * anchor).sum(-1, keepdims=True) * anchor
    other /= np.linalg.norm(other, axis=-1, keepdims=True)
    angle = 2 * np.arcsin(distance / 2)[..., None]
    return anchor, (np.cos(angle) * anchor + np.sin(angle) * other)[:, ::-1]


def overlaps(n=400):
    ioa = np.random.default_rng(1).beta(0.8, 0.6, size=(n, 2))
    ioa[:50], ioa[50:90] = 0, 1
    ioa[90, 0], ioa[91, 0] = 0.25, 0.75  # on the edge of a bin
    return ioa


def test_an_encoder_that_obeys_has_no_calibration_error():
    ioa = overlaps()
    psi = np.minimum(ioa / 0.5, 1)
    scores, details = pairs.summarize(*at_distances(1 - psi), ioa, psi)
    assert scores["diagnostics/calibration_error"] == pytest.approx(0, abs=1e-7)
    assert scores["diagnostics/rank_correlation"] < -0.85
    assert scores["diagnostics/positive_distance"] == pytest.approx(np.mean(1 - psi))
    assert scores["diagnostics/embedding_std_sqrt_d"] == pytest.approx(1, abs=0.05)
    calibration = details["calibration"]
    np.testing.assert_allclose(calibration["mean"], calibration["target"], atol=1e-7)
    wrong, _ = pairs.summarize(*at_distances(1 - psi[:, ::-1]), ioa, psi)
    assert wrong["diagnostics/calibration_error"] > 0.2


def test_bins_equal_a_slow_loop():
    ioa = overlaps()
    ioa[(ioa >= 0.3) & (ioa < 0.35)] = 0.1  # an empty bin
    distance = np.random.default_rng(2).uniform(0, 2, ioa.shape)
    psi = np.minimum(ioa / 0.6, 1)
    scores, details = pairs.summarize(*at_distances(distance), ioa, psi)
    bins = [[] for _ in range(22)]
    for x, d, s in zip(ioa.ravel(), distance.ravel(), psi.ravel(), strict=True):
        place = 1
        while place < 20 and x >= place * 0.05 - 1e-12:
            place += 1
        bins[0 if x == 0 else 21 if x == 1 else place].append((d, 1 - s))
    calibration = details["calibration"]
    assert calibration["count"] == [len(rows) for rows in bins]
    assert calibration["count"][0] == 100 and calibration["count"][21] == 80
    assert calibration["ioa_low"][:3] == [0, 0, 0.05] and calibration["ioa_low"][-1] == 1
    assert calibration["ioa_high"][:3] == [0, 0.05, 0.1] and calibration["ioa_high"][-2:] == [1, 1]
    assert calibration["ioa_low"][6] == 0.25 and calibration["ioa_low"][16] == 0.75
    for place, rows in enumerate(bins):
        names = ("mean", "q10", "q25", "q50", "q75", "q90", "target")
        ours = [calibration[name][place] for name in names]
        if not rows:
            assert place == 7 and ours == [None] * 7
            continue
        distances, asked = np.array(rows).T
        quantiles = [np.quantile(distances, q) for q in (0.1, 0.25, 0.5, 0.75, 0.9)]
        np.testing.assert_allclose(ours, [distances.mean(), *quantiles, asked.mean()], atol=1e-9)
    psi_bins = [0] * 20
    for value in psi.ravel():
        psi_bins[min(int(value * 20), 19)] += 1
    assert details["psi_histogram"] == psi_bins
    rank = scipy.stats.spearmanr(ioa.ravel(), distance.ravel()).statistic
    assert scores["diagnostics/rank_correlation"] == pytest.approx(rank)


def test_negative_pairs_are_views_of_different_pictures():
    """Both views of a picture are one vector, orthogonal to those of all others."""
    vectors = np.repeat(np.eye(6)[:, None], 2, axis=1)
    scores, _ = pairs.summarize(vectors, vectors, np.ones((6, 2)), np.ones((6, 2)))
    assert scores["diagnostics/positive_distance"] == 0
    assert scores["diagnostics/negative_distance"] == pytest.approx(np.sqrt(2))
    assert scores["diagnostics/rank_correlation"] == 0


def test_a_collapsed_encoder_has_finite_scores():
    ioa = overlaps(100)
    same = np.tile(np.array([0.6, 0.8]), (100, 2, 1))
    scores, details = pairs.summarize(same, same, ioa, np.minimum(ioa / 0.5, 1))
    json.dumps([scores, details], allow_nan=False)
    assert scores["diagnostics/rank_correlation"] == 0
    assert scores["diagnostics/embedding_std_sqrt_d"] == pytest.approx(0, abs=1e-12)


@pytest.mark.slow
def test_one_and_four_devices_draw_the_same_whatever_the_batches(tmp_path):
    drawn = []
    for devices, batch_size in ((1, 30), (4, 7)):
        config = configured(UNTRAINED | {"features.batch_size": str(batch_size)})
        source = sources.open_source(config.data, "test")
        with evaluation.open_evaluation(config, str(tmp_path), "diagnostics", heads=True) as job:
            mesh = parallel.create_mesh(devices, jax.devices()[:devices])
            _, *variables = job.encoder.pretrained
            placed = jax.device_put(variables, parallel.replicated(mesh))
            trained = job.encoder.pretrained._replace(params=placed[0], extra=placed[1])
            encoder = dataclasses.replace(job.encoder, mesh=mesh, pretrained=trained)
            drawn.append(pairs.draw(encoder, config, source, 30))
    for other in drawn[1:]:
        np.testing.assert_array_equal(other.indices, drawn[0].indices)
        np.testing.assert_array_equal(other.boxes, drawn[0].boxes)
        np.testing.assert_allclose(other.anchor, drawn[0].anchor, atol=1e-5)
        np.testing.assert_allclose(other.target, drawn[0].target, atol=1e-5)


def test_broken_encoders_and_single_pictures_are_refused(tmp_path, monkeypatch):
    write_pictures(tmp_path / "one", 1)
    config = configured(UNTRAINED | unlabeled(tmp_path / "one"))
    with pytest.raises(UserError, match=r"/one.*at least two images"):
        run(config, tmp_path / "run")

    def embed(params, extra, images, place, key):
        return (jnp.where(place[:, None, None] == 5, jnp.nan, jnp.ones((len(images), 2, 8))),) * 2

    monkeypatch.setattr(pairs, "_create_embed_fn", lambda *_: jax.jit(embed))
    config = configured(UNTRAINED)
    source = sources.open_source(config.data, "test")
    with evaluation.open_evaluation(config, str(tmp_path), "diagnostics", heads=True) as job:
        with pytest.raises(UserError, match="photos.*not finite"):
            pairs.draw(job.encoder, config, source, 8)
        drawn = pairs.draw(job.encoder, config, source, 4)
        headless = dataclasses.replace(job.encoder, pretrained=None)
        with pytest.raises(UserError, match="no heads"):
            pairs.draw(headless, config, source, 4)
    assert len(drawn.indices) == 4


@pytest.mark.parametrize("with_own", [False, True])
def test_neighbors_equal_scikit_learns(with_own):
    generator = np.random.default_rng(0)
    feature = generator.normal(size=(300, 12)).astype(np.float32)
    feature *= generator.uniform(0.1, 10, (300, 1)).astype(np.float32)
    indices = np.arange(300) * 3 + 1
    known = Features(feature, np.zeros(300, np.int32), indices, np.ones(300, bool))
    places = np.array([4, 100, 299])
    if with_own:
        queries, own = feature[places], indices[places]
    else:
        queries, own = generator.normal(size=(5, 12)).astype(np.float32), None
    oracle = NearestNeighbors(n_neighbors=9, metric="cosine").fit(feature.astype(np.float64))
    expected = oracle.kneighbors(queries, return_distance=False)
    expected = expected[:, 1:] if with_own else expected[:, :8]
    np.testing.assert_array_equal(diagnostics.neighbors(known, queries, own), expected)


def test_few_pictures_have_few_neighbors():
    known = Features(np.eye(3, dtype=np.float32), np.zeros(3), np.arange(3), np.ones(3, bool))
    (found,) = diagnostics.neighbors(known, known.feature[:1], np.array([0]))
    assert found.tolist() == [1, 2]
    (found,) = diagnostics.neighbors(known, known.feature[:1] + 0.1)
    assert found.tolist() == [0, 1, 2]


@pytest.mark.slow  # UMAP compiles for half a minute; test_job_on_a_run draws a map too
def test_the_map_keeps_clusters_together_and_is_reproducible():
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(3, 20))
    label = np.arange(90) % 3
    # Cosine: the length of a feature does not matter.
    feature = (centers[label] + 0.1 * generator.normal(size=(90, 20))) * generator.uniform(
        0.1, 10, (90, 1)
    )
    places = diagnostics.embed_in_plane(feature, 5)
    nearest = NearestNeighbors(n_neighbors=6).fit(places).kneighbors(return_distance=False)
    assert (label[nearest] == label[:, None]).all()
    np.testing.assert_array_equal(diagnostics.embed_in_plane(feature, 5), places)
    assert np.abs(diagnostics.embed_in_plane(feature, 6) - places).max() > 0.01


def test_pictures_that_are_alike_have_a_map_without_warnings():
    feature = np.repeat(np.random.default_rng(0).normal(size=(100, 64)), 3, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        places = diagnostics.embed_in_plane(feature, 5)
    assert np.isfinite(places).all()


def test_job_on_a_run(tmp_path):
    training = {"num_steps": "2", "batch_size": "32", "knn.baselines": "false", **PLAIN}
    workdir = tmp_path / "run"
    pretrain(configured(MODEL | training), str(workdir))
    before = {f: f.read_bytes() for f in workdir.rglob("*") if f.is_file()}
    changes = {"diagnostics.num_images": "120", "features.batch_size": "64"}
    (result,) = run(settings.check(settings.of_evaluation(str(workdir), None, changes)), workdir)
    assert all(file.read_bytes() == content for file, content in before.items())
    assert result["step"] == 2 and result["protocol"]["num_images"] == 120
    assert sum(result["details"]["ioa_histogram"]) == 240 == sum(result["details"]["psi_histogram"])
    assert sum(result["details"]["calibration"]["count"]) == 240
    assert set(result["scores"]) == {
        f"diagnostics/{name}"
        for name in (
            "calibration_error", "rank_correlation", "embedding_std_sqrt_d", "positive_distance",
            "negative_distance",
        )
    }  # fmt: skip
    # 120 of 2,000 pictures: the first ones of the first epoch, in the order of the split.
    indices = np.sort(np.random.default_rng([5, 0]).permutation(2000)[:120])
    plane = json.loads((workdir / "diagnostics/map.json").read_text())
    assert len(plane["x"]) == len(plane["y"]) == 120
    assert plane["label"] == photos.tiles("test", 16)[1][indices].tolist()
    assert plane["class_names"] == list(photos.names())
    with Image.open(workdir / "diagnostics/neighbors.png") as picture:
        colors = {color for _, color in picture.getcolors(2**24)}
        assert (0, 140, 60) in colors and picture.height > 6 * 140 and picture.width > 9 * 140
    assert list((workdir / "diagnostics").glob("events.out.tfevents.*"))
    (line,) = (workdir / "diagnostics/metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 2, **result["scores"]}


def test_why_there_is_no_map_is_reported(capsys, monkeypatch):
    config = configured(UNTRAINED)
    source = sources.open_source(config.data, "test")
    rows = Features(
        np.random.default_rng(0).normal(size=(16, 8)), np.zeros(16), np.arange(16), np.ones(16)
    )
    assert len(json.loads(diagnostics.map_in_plane(source, rows, 0))["x"]) == 16
    capsys.readouterr()
    fewer = Features(*(column[:15] for column in rows))
    assert diagnostics.map_in_plane(source, fewer, 0) is None
    assert "no map: it needs 16 images, not 15" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "umap", None)  # as if it were not installed
    assert diagnostics.map_in_plane(source, rows, 0) is None
    output = capsys.readouterr().out
    assert "no map: " in output and "pip install 'gsjax[report]'" in output


def test_the_map_of_another_encoder_is_removed(tmp_path):
    result = evaluation.Result("photos", {"diagnostics/positive_distance": 1.0}, {})
    file = tmp_path / "diagnostics_untrained/map.json"
    with evaluation.open_evaluation(configured(UNTRAINED), str(tmp_path), "diagnostics") as job:
        job.record(dataclasses.replace(result, files={"map.json": lambda: "{}"}))
        assert file.read_text() == "{}"
        job.record(dataclasses.replace(result, files={"map.json": lambda: None}))
    assert not file.exists()


def test_a_map_that_fails_loses_no_scores(tmp_path):
    def fail():
        raise RuntimeError("numba does not know this processor")

    result = evaluation.Result(
        "photos", {"diagnostics/positive_distance": 1.0}, {}, files={"map.json": fail}
    )
    with evaluation.open_evaluation(configured(UNTRAINED), str(tmp_path), "diagnostics") as job:
        with pytest.raises(RuntimeError):
            job.record(result)
    (entry,) = results.read(tmp_path / "results/diagnostics.json")
    assert entry["scores"] == result.scores


@pytest.mark.slow
def test_pictures_without_labels(tmp_path):
    write_pictures(tmp_path / "pictures", 20)
    changes = unlabeled(tmp_path / "pictures") | {"diagnostics.neighbors": "3"}
    changes |= SIMSIAM | {"similarity.measure": "none", "similarity.threshold": "0.9"}
    (result,) = run(configured(UNTRAINED | changes), tmp_path / "run")
    protocol = result["protocol"]
    assert result["step"] is None and protocol["num_images"] == 20
    assert protocol["psi"] == "min(ioa / 0.5, 1)" and protocol["distance"] == "|p_i - z_j|"
    assert protocol["psi_from"] == "the defaults: the run has no psi"
    folder = tmp_path / "run/diagnostics_untrained"
    plane = json.loads((folder / "map.json").read_text())
    assert len(plane["x"]) == 20 and plane["label"] is None and plane["class_names"] is None
    with Image.open(folder / "neighbors.png") as picture:
        colors = {color for _, color in picture.getcolors(2**24)}
        assert not colors & {(0, 140, 60), (205, 35, 35)}
        assert 3 * 140 < picture.height < 4 * 200


def test_neighbors_are_drawn_with_their_marks_and_names(monkeypatch):
    config = configured(UNTRAINED)
    generator = np.random.default_rng(0)
    bank, source = sources.open_labeled(config.data)
    known, asked = (
        Features(
            generator.normal(size=(n, 6)).astype(np.float32),
            generator.integers(0, 6, n),
            np.sort(generator.permutation(2000)[:n]),
            np.ones(n, bool),
        )
        for n in (90, 30)
    )
    calls = []
    draw = diagnostics.pictures.draw_ranking

    def draw_ranking(*args, **named):
        calls.append((args, named))
        return draw(*args, **named)

    monkeypatch.setattr(diagnostics.pictures, "draw_ranking", draw_ranking)
    assert len(diagnostics.draw_neighbors(bank, known, source, asked, 4)) == 4
    seen = []
    for label, index, feature in zip(asked.label, asked.indices, asked.feature, strict=True):
        if label in seen or len(seen) == 4:
            continue
        (query, results, marks), named = calls[len(seen)]
        seen.append(label)
        cosines = [unit(feature) @ unit(row) for row in known.feature]
        nearest = np.argsort(cosines)[::-1][:8]
        np.testing.assert_array_equal(query, photos.tiles("test", 16)[0][index])
        np.testing.assert_array_equal(results, photos.tiles("train", 16)[0][known.indices[nearest]])
        assert marks == ["right" if known.label[i] == label else "wrong" for i in nearest]
        names = [photos.names()[number] for number in (label, *known.label[nearest])]
        assert named["words"] == names
    assert len(calls) == len(seen) == 4


@pytest.mark.slow
def test_damaged_pictures_are_replaced_up_to_a_share(tmp_path, capsys):
    write_pictures(tmp_path / "pictures", 20)
    (tmp_path / "pictures/007.png").write_bytes(b"damaged")
    settings = UNTRAINED | unlabeled(tmp_path / "pictures")
    with pytest.raises(UserError, match=r"1 of the 20 images .*007.png"):
        run(configured(settings), tmp_path / "run")
    run(configured(settings | {"data.max_damaged": "0.05"}), tmp_path / "run")
    assert "007.png cannot be decoded" in capsys.readouterr().err
