"""DINO, ResNet-18, CIFAR-10, 1000 epochs at batch size 256.

    python -m gsjax.main --config configs/dino_cifar10.py

solo-learn reports 89.52 % top-1 with the recipe that this one follows, by a linear classifier
trained alongside. There, LARS clips its trust ratio, which starts from a coefficient of 0.02, the
warmup starts at 3e-5, and the stem pads by 2 pixels.
"""

import mocov3_cifar10


def get_config():
    config = mocov3_cifar10.get_config()
    config.method = "dino"

    config.projector.num_layers = 3
    config.projector.hidden_dim = 2048
    config.projector.last_bn = False
    config.prototypes.number = 4096
    config.target.momentum = 0.9995

    config.loss.teacher_temperature = 0.07
    config.loss.first_teacher_temperature = 0.07
    return config
