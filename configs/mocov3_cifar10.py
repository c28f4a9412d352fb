"""MoCo v3, ResNet-18, CIFAR-10, 1000 epochs at batch size 256.

    python -m gsjax.main --config configs/mocov3_cifar10.py

solo-learn reports 93.10 % top-1 with the recipe that this one follows, by a linear classifier
trained alongside. There, LARS clips its trust ratio, which starts from a coefficient of 0.02, the
warmup starts at 3e-5, and the stem pads by 2 pixels.
"""

import simclr_cifar10


def get_config():
    config = simclr_cifar10.get_config()
    config.method = "mocov3"
    config.batch_size = 256
    config.num_epochs = 1000

    config.projector.hidden_dim = 4096
    config.projector.out_dim = 256
    config.projector.last_bn = True
    config.predictor.hidden_dim = 4096
    config.loss.temperature = 0.2
    config.target.momentum = 0.99
    config.target.final_momentum = 1.0

    config.augment.interpolation = "bicubic"
    config.augment.brightness = 0.4
    config.augment.contrast = 0.4
    config.augment.saturation = 0.2
    config.augment.hue = 0.1
    config.augment.solarize = "0,0.2"

    config.optimizer.learning_rate = 0.3
    config.optimizer.weight_decay = 1e-6
    config.optimizer.rate_after_momentum = True
    return config
