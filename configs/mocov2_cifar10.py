"""MoCo v2, ResNet-18, CIFAR-10, 800 epochs at batch size 128.

    python -m gsjax.main --config configs/mocov2_cifar10.py

The thesis names MoCo v2 but does not train it, and nobody has published this recipe. It is that of
`simclr_cifar10` with the views of SimSiam, MoCo's head and queue, and SGD. BatchNorm spans the
whole batch, where facebookresearch/moco shuffles it and lightly splits it in 8.
"""

import simclr_cifar10


def get_config():
    config = simclr_cifar10.get_config()
    config.method = "mocov2"
    config.batch_size = 128

    config.loss.temperature = 0.1
    config.queue.size = 4096
    config.target.momentum = 0.99

    config.augment.min_scale = 0.2
    config.augment.brightness = 0.4
    config.augment.contrast = 0.4
    config.augment.saturation = 0.4
    config.augment.hue = 0.1

    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.06
    config.optimizer.scaling = "none"
    config.optimizer.weight_decay = 5e-4
    config.schedule.warmup_epochs = 0.0
    return config
