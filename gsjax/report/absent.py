"""What a section of a report does not show, and why."""

from gsjax.report.collect import Study
from gsjax.sweep.runs import Run

PICTURES = {  # file of a work directory: what it shows
    "examples.png": "views",
    "diagnostics/neighbors.png": "nearest neighbors",
    "diagnostics/map.json": "maps",
}
CURVES = {  # metric: what its panel shows
    "knn/top1": "kNN accuracy",
    "train/loss": "loss",
    "train/embedding_std": "spread",
    "train/positive_distance": "distance between the two views",
    "train/rankme": "rank",
    "train/alignment": "alignment",
    "train/uniformity": "uniformity",
    "train/learning_rate": "learning rate",
    "train/images_per_second": "speed",
}


def line(study: Study) -> str:
    """Names the pictures and curves that none of the study's runs has; "" if none is missing."""
    runs = [run for group in study.groups for run in group.runs]
    if not runs:
        return ""
    pictures = [what for file, what in PICTURES.items() if not any(_has(r, file) for r in runs)]
    curves = [what for name, what in CURVES.items() if not any(name in r.curves for r in runs)]
    if any(run.folder for run in runs):
        why = "not in any work directory"
    else:
        why = "in the members' work directories, not in their summaries"
    parts = [f"{', '.join(pictures)} ({why})"] if pictures else []
    if not any(_is_diagnosed(run) for run in runs):
        parts.append("calibration and histograms of psi (no diagnostics)")
    parts += [f"{', '.join(curves)} (not recorded)"] if curves else []
    return f"Not shown: {'; '.join(parts)}." if parts else ""


def _has(run: Run, file: str) -> bool:
    return run.folder is not None and (run.folder / file).exists()


def _is_diagnosed(run: Run) -> bool:
    return any(entry["step"] == run.step for entry in run.results.get("diagnostics", []))
