"""SimCLR as google-research/simclr trains it: ResNet-18, CIFAR-10, 1000 epochs at batch size 512.

    python -m gsjax.main --config configs/simclr_google_cifar10.py

Its README reports about 91 % top-1 in linear evaluation.
"""

import simclr_cifar10


def get_config():
    config = simclr_cifar10.get_config()
    config.batch_size = 512
    config.num_epochs = 1000
    config.projector.last_bn = True
    config.augment.crop = "tf"
    config.augment.brightness = 0.4
    config.augment.contrast = 0.4
    config.augment.saturation = 0.4
    config.augment.hue = 0.1
    config.optimizer.learning_rate = 1.0
    return config
