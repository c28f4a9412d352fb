"""The evaluation jobs on a small encoder, as the command line runs them."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from evaluations import QUICK, TRAINING, evaluate
from PIL import Image
from tiny_folders import write_classes, write_retrieval
from trainings import PROGRAM, finish, together

from gsjax.config import settings
from gsjax.crops import Crops
from gsjax.data import photos, sources, transforms
from gsjax.errors import UserError
from gsjax.evaluate import (
    encoder,
    evaluation,
    knn,
    linear,
    results,
    retrieval,
    transfer,
)
from gsjax.methods import create_method
from gsjax.runtime import interrupts
from gsjax.train import step
from gsjax.train.state import create_state


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_knn_gives_the_monitors_figure_and_leaves_the_training_alone(workdir, capsys):
    before = {f: f.read_bytes() for f in workdir.rglob("*") if f.is_file()}
    (result,) = evaluate(knn, workdir)
    last = lines(workdir / "metrics.jsonl")[-1]
    assert result["scores"]["knn/top1"] == pytest.approx(last["knn/top1"])
    assert result["scores"]["knn/top5"] > result["scores"]["knn/top1"]
    assert result["step"] == 2 and result["checkpoint"].endswith("checkpoints/2")
    assert result["protocol"]["k"] == 201 and result["protocol"]["num_bank"] == 5000
    assert lines(workdir / "knn/metrics.jsonl") == [{"step": 2, **result["scores"]}]
    assert list((workdir / "knn").glob("events.out.tfevents.*"))
    assert all(file.read_bytes() == content for file, content in before.items())
    output = capsys.readouterr().out
    assert f"{result['scores']['knn/top1']:.2f}" in output
    assert "replaces" not in output


def test_results_are_replaced_only_by_their_like(workdir, capsys):
    evaluate(knn, workdir)
    assert len(evaluate(knn, workdir)) == 1
    output = capsys.readouterr().out
    assert "replaces the earlier result" in output
    assert "are taken from an earlier job" in output
    assert len(lines(workdir / "knn/metrics.jsonl")) == 1
    other = evaluate(knn, workdir, knn__k=5)
    assert [result["protocol"]["k"] for result in other] == [201, 5]
    untrained = evaluate(knn, workdir, checkpoint__load="none")
    assert [result["step"] for result in untrained] == [2, 2, None]
    assert (workdir / "knn_untrained/metrics.jsonl").exists()
    assert "untrained" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_named(workdir):
    files = [f for f in (workdir / "checkpoints/2").rglob("*") if f.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    command = [sys.executable, *PROGRAM, "--workdir", str(workdir), "--job", "knn"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    name = largest.relative_to(workdir / "checkpoints/2")
    assert f"checkpoint {workdir}/checkpoints/2 is damaged ({name} differs" in done.stderr
    assert done.stderr.count("gsjax: ") == 1 and "Traceback" not in done.stderr


def test_results_that_cannot_be_read_are_not_lost(workdir):
    evaluate(knn, workdir)
    file = workdir / "results/knn.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(UserError, match=r"results/knn.json cannot be read"):
        evaluate(knn, workdir)
    assert len(file.read_text()) > 100


def test_a_branched_run_is_evaluated_at_its_own_checkpoint(workdir):
    content = json.loads((workdir / "config.json").read_text())
    content["config"]["checkpoint"]["load"] = "none"
    (workdir / "config.json").write_text(json.dumps(content))
    assert settings.of_evaluation(str(workdir), None, {}).checkpoint.load == "latest"


def test_untrained_needs_no_run(tmp_path):
    (result,) = evaluate(knn, tmp_path, checkpoint__load="none")
    assert result["checkpoint"] == "untrained"


def test_untrained_is_the_encoder_before_the_first_step(workdir):
    config = settings.load(None)
    settings.override(config, TRAINING | {"checkpoint.load": "none"})
    with evaluation.open_evaluation(config, str(workdir), "knn") as job:
        init_key, _ = step.keys(config)
        params, _ = create_method(config).init(init_key, config.data.image_size)
        assert job.step is None
    for ours, first in zip(
        jax.tree.leaves(job.encoder.variables["params"]),
        jax.tree.leaves(params["encoder"]),
        strict=True,
    ):
        np.testing.assert_allclose(ours, first, rtol=1e-5, atol=1e-6)


def test_kept_features_are_used_for_the_same_key_alone(workdir, tmp_path, monkeypatch):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, tile in enumerate(photos.tiles("test", 16)[0][:6]):
        Image.fromarray(tile).save(pictures / f"{i}.png")
    config = settings.of_evaluation(str(workdir), None, QUICK)
    folder = config.data.copy_and_resolve_references()
    folder.source, folder.data_dir = "folder", str(pictures)
    calls = []
    extract = encoder.extract
    monkeypatch.setattr(
        encoder, "extract", lambda *args: calls.append(args[2].name) or extract(*args)
    )

    def features(transform, **changes):
        changed = settings.of_evaluation(str(workdir), None, QUICK | changes)
        with evaluation.open_evaluation(changed, str(workdir), "knn") as job:
            return job.encoder.features(sources.open_source(folder, ""), transform)

    first = features(transforms.central(16))
    again = features(transforms.central(16))
    assert len(calls) == 1
    for column, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(column, other)
    features(transforms.Stretched(16))
    assert len(calls) == 2
    (pictures / "0.png").write_bytes((pictures / "1.png").read_bytes())
    changed = features(transforms.central(16))
    assert len(calls) == 3
    np.testing.assert_allclose(changed.feature[0], changed.feature[1])
    for file in (workdir / "features/kept").iterdir():
        file.write_bytes(file.read_bytes()[:-30])
    features(transforms.central(16))
    assert len(calls) == 4
    features(transforms.central(16), **{"features.keep": "false"})
    assert len(calls) == 5


def test_linear_resumes_bit_by_bit(workdir, tmp_path, monkeypatch, capsys):
    shutil.copytree(workdir, tmp_path / "other")
    (whole,) = evaluate(linear, workdir, log__every_steps=1)
    assert whole["protocol"]["learning_rate"] == 0.1
    assert whole["protocol"]["num_epochs"] == 1

    class After:
        """Asks to stop once two steps are done."""

        asked = 0

        @property
        def signal(self):
            self.asked += 1
            return 15 if self.asked > 1 else 0

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(interrupts, "Request", After)
        evaluate(linear, tmp_path / "other", log__every_steps=1)
    assert left.value.code == 128 + 15
    capsys.readouterr()
    (resumed,) = evaluate(linear, tmp_path / "other", log__every_steps=1)
    output = capsys.readouterr().out
    assert "from step 0" not in output and "from step" in output
    assert resumed["scores"] == whole["scores"]
    heads = [np.load(folder / "linear/head.npz") for folder in (workdir, tmp_path / "other")]
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(heads[0][name], heads[1][name])
    steps = [row["step"] for row in lines(tmp_path / "other/linear/metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 5]
    (again,) = evaluate(linear, workdir, log__every_steps=1)
    assert again["scores"] == whole["scores"]
    assert len(evaluate(linear, workdir, linear__flip=0.0)) == 2
    assert f"other settings to {workdir}/linear.1" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_evaluate_as_one(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "two")
    (alone,) = evaluate(knn, workdir)
    (linear_alone,) = evaluate(linear, workdir)
    for job in ("knn", "linear"):
        quick = (f"--config.{key}={value}" for key, value in QUICK.items())
        for process in together(tmp_path / "two", 2, f"--job={job}", *quick):
            finish(process)
    (both,) = results.read(tmp_path / "two/results/knn.json")
    assert both["protocol"] == alone["protocol"]
    assert both["scores"]["knn/top1"] == pytest.approx(alone["scores"]["knn/top1"], abs=0.2)
    (linear_together,) = results.read(tmp_path / "two/results/linear.json")
    assert linear_together["scores"]["linear/top1"] == pytest.approx(
        linear_alone["scores"]["linear/top1"], abs=0.5
    )


def test_linear_step_is_nesterovs_on_the_encoders_features(workdir):
    """Against a transcription of PyTorch's SGD with Nesterov momentum in NumPy."""
    config = settings.of_evaluation(str(workdir), None, QUICK | {"linear.flip": "0"})
    with config.unlocked():  # what pre-training did to the images does not matter
        config.augment.update(jitter=1.0, hue="0.1,0.2", gray=1.0, blur="1.0,0.1", solarize=1.0)
    with evaluation.open_evaluation(config, str(workdir), "linear") as job:
        rates = [0.5, 0.3, 0.1]
        optimizer = optax.sgd(lambda count: jnp.array(rates)[count], momentum=0.9, nesterov=True)
        augment = linear._train_config(config).augment
        train_step = linear.create_train_step(job.encoder, augment, optimizer, job.encoder.mesh)
        tiles, labels = photos.tiles("test", 16)
        chosen = np.random.default_rng(0).permutation(len(tiles))[:64]
        kernel = np.random.default_rng(1).normal(0, 0.01, (32, 10)).astype(np.float32)
        bias = np.zeros(10, np.float32)
        params = {"kernel": jnp.array(kernel), "bias": jnp.array(bias)}
        state = create_state(params, {}, optimizer)
        batch = {"global": Crops(tiles[chosen, None], None), "label": labels[chosen]}
        for _ in rates:
            state, values = train_step(state, batch, jax.random.key(0), job.encoder.variables)
        features = np.asarray(
            job.encoder.encode_fn(job.encoder.variables, tiles[chosen]), np.float64
        )
    velocity = [np.zeros((32, 10)), np.zeros(10)]
    weights = [kernel.astype(np.float64), bias.astype(np.float64)]
    for rate in rates:
        logits = features @ weights[0] + weights[1]
        error = np.exp(logits - logits.max(1, keepdims=True))
        error /= error.sum(1, keepdims=True)
        error[np.arange(64), labels[chosen]] -= 1
        for i, grad in enumerate((features.T @ error / 64, error.mean(axis=0))):
            velocity[i] = 0.9 * velocity[i] + grad
            weights[i] -= rate * (grad + 0.9 * velocity[i])
    np.testing.assert_allclose(state.params["kernel"], weights[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(state.params["bias"], weights[1], rtol=1e-3, atol=1e-5)
    assert values["top1"] >= 0


def test_transfer_to_class_folders(workdir, tmp_path, capsys):
    write_classes(tmp_path / "data/three", 40)
    write_classes(tmp_path / "data/pets", 20)
    changes = {"transfer__datasets": "three,pets", "transfer__data_dir": tmp_path / "data"}
    three, pets = evaluate(transfer, workdir, **changes)
    assert three["dataset"] == "three" and 50 < three["scores"]["transfer/three_top1"] <= 100
    assert list(pets["scores"]) == ["transfer/pets_mean_per_class"]
    assert three["protocol"]["num_images"] == {"train": 96, "validation": 24, "test": 120}
    assert three["protocol"]["validation_rule"] == "random 20 % of train"
    assert len(three["details"]["grid"]) == 45
    best = max(point["validation"] for point in three["details"]["grid"])
    chosen = [p for p in three["details"]["grid"] if p["validation"] == best][0]
    assert three["details"]["l2"] == chosen["l2"]
    output = capsys.readouterr().out
    assert "values converged" in output
    with pytest.raises(
        UserError, match=r"three has 3 classes and 1 train, 1 test, 0 val.*max_examples"
    ):
        evaluate(transfer, workdir, **changes, transfer__max_examples=1)
    with pytest.raises(UserError, match="transfer.datasets: nowhere: "):
        evaluate(transfer, workdir, **{**changes, "transfer__datasets": "nowhere"})
    changes["transfer__datasets"] = "three"
    *_, few = evaluate(transfer, workdir, **changes, transfer__max_examples=30)
    assert few["protocol"]["num_images"] == {"train": 24, "validation": 6, "test": 30}
    assert few["protocol"]["max_examples"] == 30


@pytest.mark.parametrize("protocol", ["thesis", "aspect", "multiscale"])
def test_retrieval(workdir, tmp_path, protocol):
    write_retrieval(tmp_path)
    (result,) = evaluate(
        retrieval, workdir, retrieval__data_dir=tmp_path, retrieval__datasets="toy",
        retrieval__protocol=protocol, retrieval__image_size=32,
    )  # fmt: skip
    scores = result["scores"]
    assert set(scores) == {
        f"retrieval/{difficulty}_{metric}"
        for difficulty in ("easy", "medium", "hard")
        for metric in ("mAP", "mP@1", "mP@5", "mP@10")
    }
    # Only the second query has an easy answer: the very tile that its box cuts out.
    assert scores["retrieval/easy_mP@1"] == 100
    counts = result["details"]["queries_with_positives"]
    assert counts == {"easy": 1, "medium": 2, "hard": 2}
    assert result["protocol"]["num_database"] == 16 and result["protocol"]["num_queries"] == 2
    for name in ("query0", "query1"):
        with Image.open(workdir / f"retrieval/toy_{name}.png") as picture:
            assert picture.width > 300


@pytest.mark.parametrize("protocol", ["thesis", "aspect"])
def test_retrieval_needs_every_picture(workdir, tmp_path, protocol, capsys):
    write_retrieval(tmp_path, broken=True)
    changes = {"retrieval__data_dir": tmp_path, "retrieval__datasets": "toy"}
    with pytest.raises(UserError, match=r"toy/jpg/1_1.jpg cannot be decoded"):
        evaluate(retrieval, workdir, **changes, retrieval__protocol=protocol)
    jpeg = (tmp_path / "toy/jpg/1_2.jpg").read_bytes()
    (tmp_path / "toy/jpg/1_1.jpg").write_bytes(jpeg[: len(jpeg) // 2])  # the header is whole
    with pytest.raises(UserError, match=r"toy/jpg/1_1.jpg cannot be decoded"):
        evaluate(retrieval, workdir, **changes, retrieval__protocol=protocol)
    assert "left out" not in capsys.readouterr().out


def test_retrieval_says_what_has_no_answer_or_lies_outside(workdir, tmp_path, capsys):
    write_retrieval(tmp_path)
    file = tmp_path / "toy/gnd_toy.json"
    truth = json.loads(file.read_text())
    for answer in truth["gnd"]:
        answer["hard"] = []
    file.write_text(json.dumps(truth))
    changes = {"retrieval__data_dir": tmp_path, "retrieval__datasets": "toy"}
    (result,) = evaluate(retrieval, workdir, **changes)
    assert "retrieval/hard_mAP" not in result["scores"]
    assert "no query has positives at the difficulty hard" in capsys.readouterr().out
    truth["gnd"][1]["bbx"] = [60, 10, 90, 30]
    file.write_text(json.dumps(truth))
    with pytest.raises(UserError, match=r"is outside the image .*query1.jpg"):
        evaluate(retrieval, workdir, **changes)


def test_retrieval_ranks_by_cosine_and_index():
    base = np.array([[1, 0], [0, 2], [3, 0.1], [1, 0]], np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    np.testing.assert_array_equal(
        retrieval.rank(base, np.array([[1, 0], [0, 1]], np.float32)), [[0, 3, 2, 1], [1, 2, 0, 3]]
    )
