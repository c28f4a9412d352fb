"""The README's tables of results, calculated anew from the raw results beside it."""

import collections
import json
import re

import numpy as np
import pytest
from scipy import stats


def table_after(repo_root, words):
    """{name of a row: its other cells} of the first table after these words."""
    text = (repo_root / "docs/pages/results.md").read_text()
    rows = re.search(r"\n\n(\|.*?)\n\n", text[text.index(words) :], re.DOTALL)[1].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]
    return {name: rest for name, *rest in cells}


def final_accuracies(repo_root, study):
    """{arm: {seed: kNN top-1}} of its summaries, with the rows for comparison."""
    found = collections.defaultdict(dict)
    for file in sorted((repo_root / "results" / study).glob("*-seed*.json")):
        run = json.loads(file.read_text())
        label, seed, value = (run["member"][key] for key in ("label", "seed", "value"))
        arm = label if value is None else f"lambda = {value:g}"
        steps, values = zip(*run["curves"]["knn/top1"], strict=True)
        assert steps[0] == 0 and steps[-1] == run["step"] == run["num_steps"]
        found[arm][seed] = values[-1]
        found["untrained encoder"].setdefault(seed, values[0])
        found["raw pixels"] = {0: run["curves"]["knn/pixels_top1"][0][1]}
    return found


def spread(values):
    text = f"{np.mean(values):.2f}"
    return f"{text} ({np.std(values, ddof=1):.2f})" if len(values) > 1 else text


def close(text, expected):
    """Whether the numbers in two texts agree within one in the last of two digits."""
    pattern = r"[-+]?\d+\.\d+"
    numbers = [np.array(re.findall(pattern, part), float) for part in (text, expected)]
    words = [re.sub(pattern, "", part) for part in (text, expected)]
    return words[0] == words[1] and np.allclose(*numbers, rtol=0, atol=0.0101)


@pytest.mark.parametrize(
    ("study", "words", "baselines"),
    [
        (
            "small_study",
            "configs/sweeps/small_study.py`: ResNet-18",
            {
                "SimCLR-GS": "SimCLR",
                "SimCLR-GS, scale 0.5": "SimCLR",
                "SimSiam-GS": "SimSiam",
            },
        ),
        (
            "small_threshold",
            "configs/sweeps/small_threshold.py`: lambda",
            {f"lambda = {value}": "lambda = 0" for value in ("0.25", "0.5", "1")},
        ),
    ],
)
def test_studies(repo_root, study, words, baselines):
    shown = table_after(repo_root, words)
    arms = final_accuracies(repo_root, study)
    assert shown.keys() == arms.keys()
    for arm, (accuracy, difference) in shown.items():
        values = list(arms[arm].values())
        assert close(accuracy, spread(values)), arm
        if arm not in baselines:
            assert difference == ""
            continue
        assert arms[arm].keys() == arms[baselines[arm]].keys()
        pairs = np.array([[arms[arm][s], arms[baselines[arm]][s]] for s in arms[arm]]).T
        low, high = stats.ttest_rel(*pairs).confidence_interval(0.95)
        expected = f"{np.mean(pairs[0] - pairs[1]):+.2f} ({low:+.2f} to {high:+.2f})"
        assert close(difference, expected), arm


@pytest.mark.parametrize("file", ["cifar10_600_steps.json", "momentum_600_steps.json"])
def test_the_comparison_with_pytorch(repo_root, file):
    shown = table_after(repo_root, "### Comparison with a PyTorch reference")
    runs = collections.defaultdict(list)
    for run in json.loads((repo_root / "results" / file).read_text())["runs"]:
        runs[run["run"]].append(run)
    for label, found in runs.items():
        knn, mean, _, loss, _, std, _ = shown[label]
        values = np.array([run["knn_top1"] for run in found])
        numbers = [np.array(cell.split("/"), float) for cell in (knn, loss, std)]
        np.testing.assert_allclose(numbers[0], values, atol=0.0501)
        np.testing.assert_allclose(float(mean), values.mean(), atol=0.0501)
        names = ("loss_last_50_steps", "embedding_std_times_sqrt_d_last_50_steps")
        for cell, name in zip(numbers[1:], names, strict=True):
            np.testing.assert_allclose(cell, [run[name] for run in found], atol=0.000501)


def test_mocov3_and_dino(repo_root):
    runs = json.loads((repo_root / "results/mocov3_dino_short_runs.json").read_text())["runs"]
    shown = table_after(repo_root, "### MoCo v3 and DINO in short runs")
    assert shown.keys() == {run["run"] for run in runs}
    names = ("knn_top1_pixels", "knn_top1_untrained", "knn_top1")
    entropies = ("teacher_entropy_last_50_steps", "mean_teacher_entropy_last_50_steps")
    for run in runs:
        cells = shown[run["run"]]
        np.testing.assert_allclose(np.array(cells[:3], float), [run[n] for n in names], atol=0.0501)
        expected = [run[name] for name in entropies if name in run]
        found = np.array([cell for cell in cells[3:] if cell], float)
        np.testing.assert_allclose(found, expected, atol=0.00501)


def test_the_evaluation_jobs(repo_root):
    content = json.loads((repo_root / "results/evaluation_cifar10_600_steps.json").read_text())
    scores = {True: {}, False: {}}  # by whether the encoder is trained
    for entry in content["results"]:
        scores[entry["step"] is not None] |= entry["scores"]
    rows = {
        ("`knn`", "CIFAR-10"): ["knn/top1", "knn/top5"],
        ("`linear`", "CIFAR-10, 10 epochs"): ["linear/top1", "linear/top5"],
        ("`transfer`", "Caltech-101"): ["transfer/caltech101_mean_per_class"],
        ("`transfer`", "Imagenette"): ["transfer/imagenette_top1"],
        ("`transfer`", "CIFAR-10, 5,000 + 5,000 pictures"): ["transfer/cifar10_top1"],
        ("`retrieval`", "`rmini`"): [f"retrieval/{x}_mAP" for x in ("easy", "medium", "hard")],
    }
    text = (repo_root / "docs/pages/results.md").read_text()
    for (job, dataset), names in rows.items():
        row = re.search(rf"^\| {job} \| {re.escape(dataset)} \|.*$", text, re.MULTILINE)[0]
        cells = [cell.strip() for cell in row.strip("|").split("|")][3:]
        for cell, trained in zip(cells, (False, True), strict=True):
            shown = np.array(cell.split("/"), float)
            np.testing.assert_allclose(shown, [scores[trained][n] for n in names], atol=0.0501)


def test_the_demonstration(repo_root):
    shown = table_after(repo_root, "### The demonstration")
    names = ("knn_top1_raw_pixels", "knn_top1_untrained", "knn_top1")
    runs = json.loads((repo_root / "results/demo.json").read_text())["runs"]
    assert shown == {str(run["seed"]): [f"{run[name]:.2f}" for name in names] for run in runs}
