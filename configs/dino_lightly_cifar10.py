"""DINO as in lightly's CIFAR-10 benchmark: ResNet-18, 200 epochs at batch size 512.

    python -m gsjax.main --config configs/dino_lightly_cifar10.py

lightly reports 81.3 % kNN accuracy (k = 200, temperature 0.1, best epoch), and 84.8 % after 800
epochs (`--config.num_epochs=800`). There, each view has a forward pass of its own, all parameters
decay, and the cosine falls once an epoch. The views are DINO's, without local ones and blur.
"""

import simclr_lightly_cifar10


def get_config():
    config = simclr_lightly_cifar10.get_config()
    config.method = "dino"

    config.augment.interpolation = "bicubic"
    config.augment.min_scale = 0.4
    config.augment.saturation = 0.2
    config.augment.solarize = "0,0.2"

    config.projector.last_bn = False
    config.projector.hidden_bn = True
    config.projector.hidden_dim = 2048
    config.projector.out_dim = 256
    config.prototypes.number = 2048
    config.prototypes.frozen_epochs = 0.0
    config.target.momentum = 0.99
    return config
