"""The table of pre-training methods. Importing it loads neither a method nor JAX.

A method is one file with `create(encoder, config) -> gsjax.methods.base.Method`, and a row here.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import ml_collections

from gsjax.config.schema import Row, shapes
from gsjax.models import create_encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodRow(Row):
    """A row of the method table.

    Attributes:
      label: its name in reports.
      linear_learning_rate: default of the linear evaluation, per 256 images.
      graded: whether its loss has a graded form.
    """

    label: str
    linear_learning_rate: float
    graded: bool = True


_SCALE = shapes(1.0, "scale of the positive term in eq. 10; 0.5 gives NT-Xent at psi = 1", low=1e-6)
_TEMPERATURE = shapes(0.5, "tau of NT-Xent", low=1e-6)
_SIAMESE = shapes(
    "mse",
    "mse (eq. 3 and eq. 8), sum (twice that), or cosine (half of it; only graded as a weight)",
    choices=("mse", "cosine", "sum"),
)
_PREDICTOR = shapes(512, "hidden width of the predictor", low=1, high=2**16)
_FIX_PRED_LR = shapes(False, "keep the predictor's learning rate constant")

_TARGET = {
    "target.momentum": shapes(
        0.99, "m in target = m * target + (1 - m) * online, after every step", high=1
    ),
    "target.final_momentum": shapes(
        0.0, "momentum at the end, reached along a cosine; 0 keeps it constant", high=1
    ),
}


def _check_siamese(config: ml_collections.ConfigDict) -> Iterator[str]:
    if config.similarity.scale != 1:
        yield (
            f"similarity.scale is {config.similarity.scale:g}, but {METHODS[config.method].label} "
            "has no such scale (eq. 3 and eq. 8 agree at psi = 1); leave it at 1"
        )
    graded = config.similarity.measure != "none"
    if config.loss.siamese == "cosine" and graded and config.similarity.form != "weight":
        yield (
            f"loss.siamese is cosine, but similarity.form={config.similarity.form} grades a "
            "distance (eq. 8); cosine needs similarity.form=weight or similarity.measure=none"
        )


def _check_simsiam(config: ml_collections.ConfigDict) -> Iterator[str]:
    if not config.projector.last_bn:
        yield "projector.last_bn is false, but SimSiam collapses without it; set it to true"
    yield from _check_siamese(config)


def _check_mocov2(config: ml_collections.ConfigDict) -> Iterator[str]:
    num_keys = config.batch_size * (2 if config.loss.symmetric else 1)
    if config.queue.size % num_keys:
        yield (
            f"queue.size is {config.queue.size}; it must be a multiple of the {num_keys} keys of a "
            f"step with batch_size={config.batch_size} and loss.symmetric={config.loss.symmetric}"
        )


def _check_dino(config: ml_collections.ConfigDict) -> Iterator[str]:
    if config.similarity.measure != "none" and config.similarity.form != "weight":
        yield (
            f"similarity.form={config.similarity.form} grades a distance, which DINO's loss does "
            "not have; set similarity.form=weight or similarity.measure=none"
        )
    warmup = config.loss.teacher_warmup_epochs
    if not warmup and config.loss.first_teacher_temperature != config.loss.teacher_temperature:
        yield (
            f"loss.first_teacher_temperature is {config.loss.first_teacher_temperature:g}, but "
            "loss.teacher_warmup_epochs is 0; set it, or make the two temperatures equal"
        )
    for key, epochs in (
        ("loss.teacher_warmup_epochs", warmup),
        ("prototypes.frozen_epochs", config.prototypes.frozen_epochs),
    ):
        if config.num_steps == 0 and epochs >= config.num_epochs:
            yield f"{key} is {epochs:g}; it must be less than num_epochs={config.num_epochs}"
    if config.projector.last_bn:
        yield "projector.last_bn is true, but DINO's last layer has no BN; set it to false"


METHODS: dict[str, MethodRow] = {
    "simclr": MethodRow(
        "gsjax.methods.simclr",
        "contrast the views of an image with those of all others (Chen et al. 2020)",
        {"similarity.scale": _SCALE, "loss.temperature": _TEMPERATURE},
        label="SimCLR",
        linear_learning_rate=0.1,  # thesis 5.1
    ),
    "simsiam": MethodRow(
        "gsjax.methods.simsiam",
        "predict one view's embedding from the other's (Chen and He 2021)",
        {
            "loss.siamese": _SIAMESE,
            "predictor.hidden_dim": _PREDICTOR,
            "optimizer.fix_pred_lr": _FIX_PRED_LR,
        },
        _check_simsiam,
        label="SimSiam",
        linear_learning_rate=30.0,  # thesis 5.1
    ),
    "mocov2": MethodRow(
        "gsjax.methods.mocov2",
        "contrast with a queue of a momentum encoder's keys (He et al. 2020, Chen et al. 2020)",
        {
            "similarity.scale": _SCALE,
            "loss.temperature": _TEMPERATURE,
            "loss.symmetric": shapes(
                True, "each view is query and key; false: queries of view 1, keys of view 2"
            ),
            "queue.size": shapes(4096, "keys to contrast with", low=1, high=2**24),
            **_TARGET,
        },
        _check_mocov2,
        label="MoCo v2",
        linear_learning_rate=30.0,  # facebookresearch/moco
    ),
    "byol": MethodRow(
        "gsjax.methods.byol",
        "predict a momentum encoder's embedding of the other view (Grill et al. 2020)",
        {"loss.siamese": _SIAMESE, "predictor.hidden_dim": _PREDICTOR, **_TARGET},
        _check_siamese,
        label="BYOL",
        linear_learning_rate=0.1,  # as SimCLR's, also trained with LARS
    ),
    "mocov3": MethodRow(
        "gsjax.methods.mocov3",
        "contrast with a momentum encoder's keys of the same batch (Chen et al. 2021)",
        {
            "similarity.scale": _SCALE,
            "loss.temperature": _TEMPERATURE,
            "predictor.hidden_dim": _PREDICTOR,
            "predictor.last_bn": shapes(
                False, "BN after the predictor, with neither scale nor bias (MoCo v3's ViTs)"
            ),
            **_TARGET,
        },
        label="MoCo v3",
        linear_learning_rate=0.1,  # facebookresearch/moco-v3, ResNet-50
    ),
    "dino": MethodRow(
        "gsjax.methods.dino",
        "match a momentum encoder's distribution over prototypes (Caron et al. 2021)",
        {
            "loss.student_temperature": shapes(0.1, "of the student's softmax", low=1e-6),
            "loss.teacher_temperature": shapes(0.04, "of the teacher's softmax", low=1e-6),
            "loss.first_teacher_temperature": shapes(
                0.04, "where its warmup starts, a step per epoch", low=1e-6
            ),
            "loss.teacher_warmup_epochs": shapes(
                0, "epochs of this warmup, which num_steps does not shorten; 0: none"
            ),
            "projector.hidden_bn": shapes(
                False, "BN before each GELU (facebookresearch/dino's use_bn_in_head)"
            ),
            "prototypes.number": shapes(65536, "K, outputs of the last layer", low=2, high=2**20),
            "prototypes.unit": shapes(True, "prototypes keep unit length"),
            "prototypes.frozen_epochs": shapes(
                1.0,
                "epochs in which they keep their initial weights; with num_steps, at most a tenth",
            ),
            "prototypes.center_momentum": shapes(
                0.9, "of the mean score, which is subtracted from the teacher's", high=1
            ),
            **_TARGET,
        },
        _check_dino,
        label="DINO",
        linear_learning_rate=0.001,  # facebookresearch/dino
    ),
}


def create_method(config: ml_collections.ConfigDict) -> Any:
    """Creates the `gsjax.methods.base.Method` named by `config.method`, with its encoder."""
    return METHODS[config.method].load()(create_encoder(config), config)
