"""Work directories as trainings and evaluations leave them, made up for the tests of reports."""

import json

from gsjax.config import defaults, settings
from gsjax.sweep import runner
from gsjax.sweep.plans import Arm, Member, Plan, Sweep


def write_run(
    folder,
    knn=None,
    *,
    seed=5,
    measure="ioa",
    steps=100,
    done=None,
    untrained=20.0,
    pixels=30.0,
    records=(),
    results=None,
    config=None,
):
    """A run of SimCLR-GS with `knn` top-1 at its end; `measure="none"` makes a baseline."""
    changes = {"seed": seed, "similarity.measure": measure, "num_steps": steps, **(config or {})}
    content = defaults.get_config()
    settings.override(content, {key: str(value) for key, value in changes.items()})
    folder.mkdir(parents=True)
    data = {"num_images": 1000, "hosts": None}
    written = {"gsjax": "0.1.0", "config": content.to_dict(), "data": data}
    (folder / "config.json").write_text(json.dumps(written))
    done = steps if done is None else done
    if done:
        (folder / "checkpoints" / str(done)).mkdir(parents=True)
        (folder / "checkpoints" / str(done) / "manifest.sha256").write_text("")
    lines = []
    if untrained is not None:
        lines.append({"step": 0, "knn/pixels_top1": pixels, "knn/top1": untrained})
    lines += records
    if knn is not None:
        lines.append({"step": steps, "knn/top1": knn})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for job, entries in (results or {}).items():
        (folder / "results").mkdir(exist_ok=True)
        (folder / "results" / f"{job}.json").write_text(json.dumps(entries))
    return folder


def result(job, dataset, scores, step=100, protocol=None, details=None):
    """An entry of results/<job>.json."""
    return {
        "checkpoint": "untrained" if step is None else f"checkpoints/{step}",
        "step": step,
        "dataset": dataset,
        "scores": {f"{job}/{name}": value for name, value in scores.items()},
        "protocol": protocol or {},
        "details": details or {},
    }


def diagnosed(error=0.5, psi="min(ioa / 0.5, 1)", step=100, bins=3, counts=None):
    """An entry of results/diagnostics.json."""
    low = [i / bins for i in range(bins)]
    column = [0.9 - 0.2 * i for i in range(bins)]
    calibration = {
        "ioa_low": low,
        "ioa_high": [*low[1:], 1.0],
        "count": counts or [4] * bins,
        "mean": column,
        "target": column,
    }
    calibration |= {f"q{q}": [value + q / 1000 for value in column] for q in (10, 25, 50, 75, 90)}
    details = {
        "ioa_histogram": [1, 2, 3, 4],
        "psi_histogram": [0, 1, 2, 7],
        "calibration": calibration,
    }
    scores = {"calibration_error": error, "rank_correlation": -0.25}
    return result("diagnostics", "photos", scores, step, {"psi": psi, "seed": 5}, details)


def write_plan(folder, members, title="A study", axis="", shows=()):
    """The sweep.json of (name, label, seed, value) and maybe a reference."""
    plan_sweep = Sweep(title, (Arm("", "demo"),), (5,), shows=shows)
    object.__setattr__(plan_sweep, "axis", axis)
    config = defaults.get_config()
    plan = Plan(plan_sweep, tuple(Member(*m[:4], config, *m[4:]) for m in members))
    folder.mkdir(parents=True, exist_ok=True)
    runner.write_plan(plan, folder)
