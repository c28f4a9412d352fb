"""The model card of an exported encoder: a README with front matter, as model hubs read it."""

import json
import shlex
from collections.abc import Collection
from typing import Any

import ml_collections
from etils import epath

from gsjax.config import choices, defaults, settings
from gsjax.config.defaults import SETTINGS
from gsjax.config.schema import Kind, Value
from gsjax.crops import limits_overlap, local_size
from gsjax.data import transforms
from gsjax.evaluate import results
from gsjax.evaluate.evaluation import Evaluation
from gsjax.evaluate.finetuned import Finetuned
from gsjax.methods import METHODS
from gsjax.runtime import files

# Free settings without which training does not start: the splits of the kNN monitor.
_NEEDED = ("data.labeled_split", "data.test_split")
FILES = {
    "model.safetensors": "weights, with the names and layouts of torchvision and timm",
    "config.json": "what timm and gsjax need to load them",
    "encoder.stablehlo": "program for JAX (`jax.export`): uint8 [B, {size}, {size}, 3] to "
    "{outputs}, float32 [B, {number}], normalization included",
    "encoder.onnx": "program for ONNX runtimes, with one input and one output: normalized float32 "
    "[B, 3, {size}, {size}] to {outputs}, float32 [B, {number}]",
    "detectron2.pkl": "weights, with the names of Detectron2: RGB, `STRIDE_IN_1X1: False`, and 255 "
    "times mean and standard deviation as `PIXEL_MEAN` and `PIXEL_STD`",
    "README.md": "this card",
}


def create(
    config: ml_collections.ConfigDict,
    job: Evaluation,
    architecture: str | None,
    num_features: int,
    names: Collection[str],
    finetuned: Finetuned | None = None,
) -> str:
    """Returns the text of the card.

    Args:
      config: the whole configuration.
      job: the encoder, and the work directory with its `results/`.
      architecture: timm's name of the encoder; None if timm does not have it.
      num_features: F of its representations.
      names: of the exported files, as in `FILES`.
      finetuned: the network, if the encoder was fine-tuned.
    """
    run = settings.read_run(job.run / "config.json") if job.run else None
    is_own = run is not None and not run["encoder.init"]
    history = ["pre-trained without labels"] * is_own
    if finetuned:
        history.append("fine-tuned" if job.encoder_path else "trained on labels alone")
    parts = [
        _front_matter(config, run, architecture, finetuned),
        f"# {', '.join([config.encoder.name, *history])}\n",
        _how_trained(config, run, job, finetuned),
        _how_finetuned(finetuned) if finetuned else "",
        _scores(job, finetuned),
        _preprocessing(config),
        _usage(config, architecture, names, num_features, finetuned),
        _contents(config, names, num_features, finetuned),
    ]
    return "\n".join(part for part in parts if part)


def _front_matter(
    config: ml_collections.ConfigDict,
    run: dict[str, Value] | None,
    architecture: str | None,
    finetuned: Finetuned | None,
) -> str:
    lines = ["---", f"library_name: {'timm' if architecture else 'gsjax'}"]
    if config.export.license:
        lines.append(f"license: {json.dumps(config.export.license)}")
    task = "image-classification" if finetuned else "image-feature-extraction"
    tags = [task, "jax"] + ["timm"] * bool(architecture)
    if run:
        if run["data.source"] != "folder":
            lines += ["datasets:", f"- {json.dumps(run['data.source'])}"]
        tags.append("self-supervised-learning")
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---\n"])


def _how_trained(
    config: ml_collections.ConfigDict,
    run: dict[str, Value] | None,
    job: Evaluation,
    finetuned: Finetuned | None,
) -> str:
    if job.encoder_path is None and finetuned:
        return "Training started from random weights.\n"
    if job.encoder_path is None:
        return "**The encoder is untrained**: these are its initial weights.\n"
    if run is None:
        origin = job.origin()["weights"]
        return f"The weights were read from `{job.encoder_path.name}` (format: {origin}).\n"
    graded = "no graded similarity"
    if run["similarity.measure"] != "none":
        measure, threshold = run["similarity.measure"], run["similarity.threshold"]
        form = "" if run["similarity.form"] == "regress" else f", {run['similarity.form']}"
        graded = f"graded similarity ({measure}, threshold {threshold:g}{form})"
    split = run["data.split"]
    rows = [
        ("method", f"{METHODS[str(run['method'])].label}, {graded}"),
        ("data", f"{run['data.source']}, split `{split}`" if split else run["data.source"]),
        ("views", _views(run)),
        ("training", f"{job.step} steps of {run['batch_size']} images, seed {run['seed']}"),
        ("encoder", _described(config)),
    ]
    if run["encoder.init"]:
        rows.insert(0, ("started from", f"`{epath.Path(str(run['encoder.init'])).name}`"))
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    return f"| | |\n| --- | --- |\n{table}\n\nTrained by\n\n```\n{_command(run)}\n```\n"


def _how_finetuned(finetuned: Finetuned) -> str:
    claim = finetuned.claim
    names = f": `{json.dumps(finetuned.class_names)}`" if finetuned.class_names else ""
    return (
        "## Training on labels\n\n"
        f"The whole network was trained on {claim['num_train']} labeled images of "
        f"{claim['train']}: {claim['num_steps']} steps of {claim['batch_size']} images, with "
        f"learning rates {claim['learning_rate']:g} (encoder) and "
        f"{claim['head_learning_rate']:g} (head) per 256 images.\n\n"
        f"Its {finetuned.num_classes} classes, in the order of the logits{names}.\n"
    )


def _views(run: dict[str, Value]) -> str:
    config = defaults.get_config()
    with config.unlocked():
        config.update_from_flattened_dict(run)
    crops, size, local = config.crops, config.data.image_size, local_size(config)
    views = f"{size} x {size} pixels"
    if crops.local_views:
        views += f", and {crops.local_views} local ones of {local} x {local}"
    if limits_overlap(crops):
        views += f", {crops.overlap} from {crops.min_overlap:g} to {crops.max_overlap:g}"
    return views


def _command(run: dict[str, Value]) -> str:
    """Returns a command that trains likewise: all settings that differ from the defaults."""
    changed = [
        f"--config.{key}={shlex.quote(str(run[key]))}"
        for key, setting in SETTINGS.items()
        if (setting.kind is not Kind.FREE or key in _NEEDED) and run[key] != setting.default
    ]
    if run["data.data_dir"]:
        changed.append("--config.data.data_dir=DATA_DIR")
    return " \\\n    ".join(["python -m gsjax.main --workdir WORKDIR", *changed])


def _described(config: ml_collections.ConfigDict) -> str:
    encoder = choices.encoder_settings(config)
    shown = ("name", "width", "stem", "patch_size", "depth")
    return ", ".join(f"{key.replace('_', ' ')} {encoder[key]}" for key in shown if key in encoder)


def _scores(job: Evaluation, finetuned: Finetuned | None) -> str:
    """Returns a table of the scores of this checkpoint in `results/`; "" if there are none."""
    rows = []
    for file in files.with_suffix(job.workdir / "results", ".json"):
        for entry in results.read(file):
            is_of_encoder = entry["encoder"].get("digest") == job.encoder.digest
            # A fine-tuned encoder has other representations than the one it started from.
            is_ours = not finetuned or (file.stem == "finetune" and finetuned.is_result(entry))
            if is_of_encoder and is_ours:
                rows += _rows(entry)
    if not rows:
        return ""
    head = ["| data | score | value | protocol |", "| --- | --- | --- | --- |"]
    return "\n".join(["## Scores\n", *head, *rows, ""])


def _rows(entry: dict[str, Any]) -> list[str]:
    numbers = {name: x for name, x in entry["protocol"].items() if isinstance(x, (int, float))}
    protocol = ", ".join(f"{name} {value:g}" for name, value in numbers.items())
    return [
        f"| {entry['dataset']} | {score} | {value:.2f} | {protocol} |"
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


def _usage(
    config: ml_collections.ConfigDict,
    architecture: str | None,
    names: Collection[str],
    num_features: int,
    finetuned: Finetuned | None,
) -> str:
    outputs = "logits" if finetuned else "features"
    examples = [
        'import gsjax\n\nencoder = gsjax.load_encoder("FOLDER")\nfeatures = encoder.encode(images)'
    ]
    if architecture:
        examples.append(
            'import timm\n\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True)'
        )
    if "encoder.stablehlo" in names:
        examples.append(
            "import pathlib\n\nfrom jax import export\n\n"
            'content = pathlib.Path("FOLDER/encoder.stablehlo").read_bytes()\n'
            f"{outputs} = export.deserialize(bytearray(content)).call(images)"
        )
    if "encoder.onnx" in names:
        examples.append(
            "import onnxruntime\n\n"
            'session = onnxruntime.InferenceSession("FOLDER/encoder.onnx")\n'
            f"({outputs},) = session.run(None, {{session.get_inputs()[0].name: normalized}})"
        )
    blocks = [f"```python\n{example}\n```\n" for example in examples]
    give = f"Images of {config.data.image_size} pixels give {num_features} features"
    give += f" and {finetuned.num_classes} logits" if finetuned else ""
    return "\n".join(["## Usage\n", *blocks, f"{give}.\n"])


def _contents(
    config: ml_collections.ConfigDict,
    names: Collection[str],
    num_features: int,
    finetuned: Finetuned | None,
) -> str:
    outputs, number = "representations", num_features
    if finetuned:
        outputs, number = "logits", finetuned.num_classes
    facts = {"size": config.data.image_size, "outputs": outputs, "number": number}
    rows = [
        f"| `{name}` | {text.format(**facts)} |" for name, text in FILES.items() if name in names
    ]
    return "\n".join(["## Files\n", "| file | content |", "| --- | --- |", *rows, ""])
