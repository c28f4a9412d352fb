"""SimSiam as in lightly's CIFAR-10 benchmark: ResNet-18, 200 epochs at batch size 512.

    python -m gsjax.main --config configs/simsiam_lightly_cifar10.py

lightly reports 76.4 % kNN accuracy (k = 200, temperature 0.1, best epoch), and 90.4 % after 800
epochs (`--config.num_epochs=800`). There, the cosine falls once an epoch.
"""

import simclr_lightly_cifar10


def get_config():
    config = simclr_lightly_cifar10.get_config()
    config.method = "simsiam"
    config.loss.siamese = "cosine"

    config.augment.min_scale = 0.2

    config.projector.hidden_dim = 2048
    config.projector.out_dim = 2048

    config.optimizer.learning_rate = 0.06
    config.optimizer.scaling = "none"
    return config
