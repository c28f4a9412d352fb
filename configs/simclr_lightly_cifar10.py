"""SimCLR as in lightly's CIFAR-10 benchmark: ResNet-18, 200 epochs at batch size 512.

    python -m gsjax.main --config configs/simclr_lightly_cifar10.py

lightly reports 84.8 % kNN accuracy (k = 200, temperature 0.1, best epoch), and 87.9 % after 800
epochs (`--config.num_epochs=800`). There, each view has a forward pass of its own, and the cosine
falls once an epoch.
"""

import simclr_cifar10


def get_config():
    config = simclr_cifar10.get_config()
    config.batch_size = 512
    config.num_epochs = 200
    config.knn.preset = "instdisc"
    config.data.mean = "0.485,0.456,0.406"  # ImageNet's
    config.data.std = "0.229,0.224,0.225"
    config.encoder.zero_init_residual = False
    config.projector.last_bn = True

    config.augment.brightness = 0.4
    config.augment.contrast = 0.4
    config.augment.saturation = 0.4
    config.augment.hue = 0.1

    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.12  # 0.06 per 128 images
    config.optimizer.weight_decay = 5e-4
    config.schedule.warmup_epochs = 0.0
    return config
