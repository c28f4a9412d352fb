"""Defines every gsjax setting once: its class, default, help and allowed values.

This file has the settings shared by all methods, encoders and jobs; table rows bring their own.

The defaults pre-train a small encoder with SimCLR and graded similarity on tiles of photographs
that come with installed packages. A file in `configs/` starts from `get_config()` and overrides
what differs; so does `--config.some.key=value` on the command line. Values are numbers, strings or
booleans; a list is a comma-separated string. A number is at least 0 unless `low` says otherwise.
"""

from collections.abc import Mapping

import ml_collections

from gsjax.config.schema import Setting, free, orders, per_view, shapes, starts
from gsjax.data import SOURCES
from gsjax.jobs import JOBS
from gsjax.methods import METHODS
from gsjax.models import ENCODERS
from gsjax.trackers import TRACKERS
from gsjax.train import OPTIMIZERS


def _in_groups(*parts: Mapping[str, Setting]) -> dict[str, Setting]:
    """Merges settings and keeps each group together, in order of first appearance."""
    joined: dict[str, Setting] = {}
    for part in parts:
        for key, setting in part.items():
            assert joined.get(key, setting) is setting, f"{key} is defined twice"
            joined[key] = setting
    groups = list(dict.fromkeys(key.rpartition(".")[0] for key in joined))
    return {
        key: joined[key] for group in groups for key in joined if key.rpartition(".")[0] == group
    }


# In a work directory with checkpoints, what `shapes` the trained encoder or `orders` its images
# is fixed; what is `free` may change with every start.
_COMMON: dict[str, Setting] = {
    "method": shapes("simclr", "pre-training method", choices=METHODS),
    "seed": shapes(5, "seed of the initial weights, data order, crops and augmentations"),
    "batch_size": shapes(128, "images per step across all devices, of any number of views", low=2),
    "num_epochs": shapes(0, "length of training; an epoch is floor(images / batch_size) steps"),
    "num_steps": shapes(200, "if positive, length of training in steps, instead of num_epochs"),
    "platform": free(
        "auto",
        "required devices; auto uses what JAX finds and warns if that is only the CPU",
        choices=("auto", "cpu", "gpu", "tpu"),
    ),
    "remat": free(
        False,
        "recompute the encoder's blocks in the backward pass: less memory, "
        "more time, same gradients",
    ),
    # Images.
    "data.source": shapes(
        "photos", "a TFDS name such as cifar10, folder, list (text file), or photos (built-in)"
    ),
    "data.split": shapes(
        "train",
        'split for pre-training; for a folder: data_dir/SPLIT, or data_dir if ""; for a list: the '
        "file with a path on each line",
    ),
    "data.labeled_split": free(
        "train", 'bank of kNN and training set of the linear evaluation; "" for none'
    ),
    "data.test_split": free("test", "test set of kNN and the linear evaluation"),
    "data.data_dir": free("", 'TFDS directory (TFDS default if "") or folder of images'),
    "data.image_size": shapes(32, "side length of the views in pixels", low=8, high=4096),
    "data.memory_gb": orders(
        4.0, "TFDS splits with at most this many GB of files are kept in memory"
    ),
    "data.mean": shapes("0.485,0.456,0.406", "RGB mean to subtract", count=3, high=1),
    "data.std": shapes("0.229,0.224,0.225", "RGB std to divide by", count=3, low=1e-6, high=1),
    "data.max_damaged": free(
        0.001, "fraction of images that may be undecodable before training stops", high=1
    ),
    # Encoder and heads.
    "encoder.name": shapes("resnet18", "encoder architecture", choices=ENCODERS),
    "encoder.dtype": shapes(
        "float32",
        "bfloat16 for computation only, float64 for everything",
        choices=("float32", "bfloat16", "float64"),
    ),
    "encoder.weights": free(
        "", "evaluations: encoder from this file, folder or run, instead of the one in workdir"
    ),
    "encoder.network": free(
        "auto",
        "of weights that hold two: online (student, query) or target (teacher, key)",
        choices=("auto", "online", "target"),
    ),
    "encoder.init": starts(
        "", "pre-training starts from the encoder in this file, folder or run, with new heads"
    ),
    "projector.num_layers": shapes(
        2, "Linear layers; all but the last with ReLU and, in most methods, BN", low=1, high=100
    ),
    "projector.hidden_dim": shapes(512, "width of the hidden layers", low=1, high=2**16),
    "projector.out_dim": shapes(128, "size of the embedding", low=1, high=2**16),
    "projector.last_bn": shapes(False, "BN after the last layer; a method may require it"),
    # Loss.
    "similarity.measure": shapes(
        "ioa",
        "overlap measure; none: no graded similarity (baseline)",
        choices=("ioa", "iou", "none"),
    ),
    "similarity.threshold": shapes(
        0.5, "lambda in eq. 5: views with at least this overlap count as the same", high=1
    ),
    "similarity.form": shapes(
        "regress",
        "how psi enters the loss: regress (eq. 7), weight of the pair, or margin (GCL)",
        choices=("regress", "weight", "margin"),
    ),
    "similarity.margin": shapes(
        2**0.5, "of similarity.form=margin: views farther apart are not pushed further", high=2
    ),
    "loss.chunks": free(
        1,
        "encode in this many parts, forward and again backward: less memory, same loss; for "
        "encoders without BatchNorm",
        low=1,
    ),
    # Crops and augmentations.
    "crops.local_views": shapes(
        0, "multi-crop: smaller views per image, anchors only, next to the two global ones", high=64
    ),
    "crops.local_size": shapes(
        0, "their side length in pixels; 0: 3/7 of data.image_size, 96 of 224", high=4096
    ),
    "crops.local_min_scale": shapes(
        0.05, "their smallest crop area as a fraction of the image", low=1e-6, high=1
    ),
    "crops.local_max_scale": shapes(0.4, "their largest crop area", low=1e-6, high=1),
    "crops.overlap": shapes(
        "iou",
        "measure for the two below; ioa: both directions must be in the range",
        choices=("iou", "ioa"),
    ),
    "crops.min_overlap": shapes(
        0.0, "smallest overlap of the global views; others are redrawn, at most 100 times", high=1
    ),
    "crops.max_overlap": shapes(1.0, "largest overlap of the global views", high=1),
    "augment.crop": shapes(
        "torchvision", "distribution of the random crops", choices=("torchvision", "tf", "byol")
    ),
    "augment.interpolation": shapes(
        "bilinear", "of resized crops, with antialiasing", choices=("bilinear", "bicubic")
    ),
    "augment.min_scale": per_view(
        0.08, "smallest crop area as a fraction of the image", low=1e-6, high=1
    ),
    "augment.max_scale": per_view(1.0, "largest crop area", low=1e-6, high=1),
    "augment.flip": per_view(0.5, "probability of a horizontal flip", high=1),
    "augment.jitter": per_view(0.8, "probability of the color jitter", high=1),
    "augment.brightness": per_view(0.8, "strength s: factor from 1 - s to 1 + s"),
    "augment.contrast": per_view(0.8, "likewise"),
    "augment.saturation": per_view(0.8, "likewise"),
    "augment.hue": per_view(0.2, "largest shift in either direction, in turns", high=0.5),
    "augment.gray": per_view(0.2, "probability of a gray view", high=1),
    "augment.blur": per_view(0.0, "probability of a Gaussian blur", high=1),
    "augment.min_sigma": per_view(
        0.1, "smallest standard deviation of the blur, in pixels", low=1e-3
    ),
    "augment.max_sigma": per_view(2.0, "largest standard deviation of the blur"),
    "augment.solarize": per_view(
        0.0, "probability of solarization: channels of at least 0.5 are inverted", high=1
    ),
    # Optimizer.
    "optimizer.name": shapes("lars", "update rule", choices=OPTIMIZERS),
    "optimizer.learning_rate": shapes(0.3, "learning rate before scaling"),
    "optimizer.scaling": shapes(
        "linear", "of the learning rate, by batch_size / 256", choices=("linear", "sqrt", "none")
    ),
    "optimizer.momentum": shapes(0.9, "of LARS and SGD; beta1 of AdamW", high=0.9999),
    "optimizer.weight_decay": shapes(1e-6, "lars: weights only; sgd, adamw: every parameter"),
    "optimizer.clip": shapes(
        0.0, "if positive, each parameter's gradient is scaled down to this norm (DINO)"
    ),
    "schedule.final_weight_decay": shapes(
        0.0, "if positive, the weight decay moves there along a cosine"
    ),
    "schedule.final_learning_rate": shapes(0.0, "end of the cosine; batch_size does not scale it"),
    "schedule.warmup_epochs": shapes(
        10.0, "linear warmup from 0, then cosine decay; with num_steps, at most a tenth of them"
    ),
    # The kNN monitor and the evaluations.
    "knn.preset": free(
        "thesis",
        "thesis: k = 201, majority; instdisc: k = 200, weights exp(cos / 0.1)",
        choices=("thesis", "instdisc"),
    ),
    "knn.k": free(0, "if positive, replaces the preset's"),
    "knn.every_epochs": free(10.0, "epochs between measurements; the end is always measured"),
    "knn.baselines": free(True, "also measure raw pixels and the untrained encoder, at the start"),
    "features.batch_size": free(256, "images per extraction step", low=1),
    "features.interpolation": free(
        "bilinear",
        "of images resized before their central crop; the transfer job always uses bicubic",
        choices=("bilinear", "bicubic"),
    ),
    "features.crop_pct": free(
        0.0,
        "side of the central crop / short side of the image; 0: 1 up to 96 pixels, else 224 / 256",
        high=1,
    ),
    "features.keep": free(True, "in workdir/features/kept, for the next job on the same encoder"),
    # Checkpoints and logs.
    "checkpoint.load": free("latest", "latest, none, a path or (in evaluations) a step"),
    "checkpoint.every_steps": free(
        1000, "also saves at the end and before each kNN measurement", low=1
    ),
    "checkpoint.keep": free(2, "number of newest checkpoints to keep", low=1),
    "checkpoint.keep_every": free(0, "if positive, multiples of this step are kept forever"),
    "log.every_steps": free(10, "steps between lines of metrics", low=1),
    "log.example_pairs": free(6, "images whose views are drawn at the start"),
    "log.tracker": free(
        "none",
        "copy of metrics, examples and settings for Weights & Biases or MLflow (extras)",
        choices=("none", *TRACKERS),
    ),
    "profile.first_step": free(10, "first step to trace", low=1),
    "profile.num_steps": free(0, "if positive, trace this many steps into workdir/profile"),
}

# All settings, in the order in which lists show them.
SETTINGS: dict[str, Setting] = _in_groups(
    _COMMON,
    *(
        row.settings
        for table in (METHODS, ENCODERS, SOURCES, OPTIMIZERS, JOBS)
        for row in table.values()
    ),
)


# Groups whose values may be numbers or strings; `settings.check` checks their types.
_PER_VIEW = {key.rpartition(".")[0] for key, setting in SETTINGS.items() if setting.per_view}


def get_config() -> ml_collections.ConfigDict:
    """Returns the default configuration, locked against keys it does not have."""
    config = ml_collections.ConfigDict()
    for key, setting in SETTINGS.items():
        group, _, name = key.rpartition(".")
        if group and group not in config:
            config[group] = ml_collections.ConfigDict(type_safe=group not in _PER_VIEW)
        (config[group] if group else config)[name] = setting.default
    return config.lock()
