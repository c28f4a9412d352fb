"""The model card of an exported encoder: a README with front matter, as model hubs read it."""

import json
import shlex
from typing import Any

import ml_collections
from etils import epath

from gsjax.data import transforms
from gsjax.evaluate import results
from gsjax.evaluate.evaluation import Evaluation
from gsjax.methods import METHODS
from gsjax.models import weights
from gsjax.runtime import files

_FILES = {
    "model.safetensors": "weights, with the names and layouts of torchvision",
    "config.json": "what timm and gsjax need to load them",
    "encoder.stablehlo": "program for JAX (`jax.export`): uint8 [B, {size}, {size}, 3] to float32 "
    "[B, {features}], normalization included",
    "encoder.onnx": "program for ONNX runtimes: normalized float32 [B, 3, {size}, {size}] to "
    "float32 [B, {features}]",
    "detectron2.pkl": "weights, with the names of Detectron2",
}


def create(config: ml_collections.ConfigDict, job: Evaluation, folder: epath.Path) -> str:
    """Returns the text of the card.

    Args:
      config: the whole configuration.
      job: the encoder, and the work directory with its `results/`.
      folder: the exported files.
    """
    name = weights.family(config.encoder.name).architecture(config.encoder)
    features = json.loads((folder / "config.json").read_text())["num_features"]
    parts = [
        _front_matter(config, job, name),
        f"# {config.encoder.name}, pre-trained without labels\n",
        _how_trained(config, job),
        _preprocessing(config),
        _usage(config, name, features),
        _contents(config, folder, features),
    ]
    scores = _scores(job)
    return "\n".join([*parts[:3], scores, *parts[3:]] if scores else parts)


def _front_matter(config: ml_collections.ConfigDict, job: Evaluation, name: str | None) -> str:
    lines = ["---", f"library_name: {'timm' if name else 'gsjax'}"]
    if config.export.license:
        lines.append(f"license: {json.dumps(config.export.license)}")
    if "method" in job.origin():
        lines += ["datasets:", f"- {json.dumps(config.data.source)}"]
    tags = ["image-feature-extraction", "self-supervised-learning", "jax"] + ["timm"] * bool(name)
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---\n"])


def _how_trained(config: ml_collections.ConfigDict, job: Evaluation) -> str:
    origin = job.origin()
    if "weights" in origin:
        return f"The weights come from a file of another program ({origin['weights']}).\n"
    if job.step is None:
        return "**The encoder is untrained**: these are its initial weights.\n"
    similarity = config.similarity
    graded = "no graded similarity"
    if similarity.measure != "none":
        graded = f"graded similarity ({similarity.measure}, threshold {similarity.threshold:g})"
    size = config.data.image_size
    rows = [
        ("method", f"{METHODS[config.method].label}, {graded}"),
        ("data", f"{config.data.source}, split `{config.data.split}`"),
        ("views", f"{size} x {size} pixels"),
        ("training", f"{job.step} steps of {config.batch_size} images, seed {config.seed}"),
        ("encoder", _described(config)),
    ]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    command = f"python -m gsjax.main --workdir {shlex.quote(files.shown(job.workdir))}"
    return f"| | |\n| --- | --- |\n{table}\n\nExported by `{command} --job export`.\n"


def _described(config: ml_collections.ConfigDict) -> str:
    encoder = config.encoder.to_dict()
    return ", ".join(f"{key} {encoder[key]}" for key in ("name", "width", "stem") if key in encoder)


def _scores(job: Evaluation) -> str:
    """Returns a table of the scores of this checkpoint in `results/`; "" if there are none."""
    rows = []
    for file in files.with_suffix(job.workdir / "results", ".json"):
        for entry in results.read(file):
            if entry["encoder"].get("digest") == job.encoder.digest:
                rows += _rows(entry)
    if not rows:
        return ""
    return "\n".join(["## Scores\n", "| data | score | value |", "| --- | --- | --- |", *rows, ""])


def _rows(entry: dict[str, Any]) -> list[str]:
    return [
        f"| {entry['dataset']} | {score} | {value:.2f} |"
        for score, value in entry["scores"].items()
    ]


def _preprocessing(config: ml_collections.ConfigDict) -> str:
    transform = transforms.of_config(config)
    return (
        "## Preprocessing\n\n"
        f"Resize the short side to {transform.short_side} ({transform.method}), take the central "
        f"{transform.size} x {transform.size} pixels, scale to [0, 1], subtract "
        f"{config.data.mean} and divide by {config.data.std}.\n"
    )


def _usage(config: ml_collections.ConfigDict, name: str | None, features: int) -> str:
    lines = ["## Usage\n", "```python", "import gsjax", ""]
    lines += [
        'encoder = gsjax.load_encoder("FOLDER")',
        "features = encoder.encode(images)",
        "```\n",
    ]
    if name:
        lines += ["```python", "import timm", ""]
        lines += ['model = timm.create_model("local-dir:FOLDER", pretrained=True)', "```\n"]
    size = config.data.image_size
    return "\n".join([*lines, f"Images of {size} pixels give {features} features.\n"])


def _contents(config: ml_collections.ConfigDict, folder: epath.Path, features: int) -> str:
    size = config.data.image_size
    rows = [
        f"| `{name}` | {text.format(size=size, features=features)} |"
        for name, text in _FILES.items()
        if (folder / name).exists()
    ]
    return "\n".join(["## Files\n", "| file | content |", "| --- | --- |", *rows, ""])
