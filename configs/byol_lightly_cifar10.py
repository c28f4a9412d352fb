"""BYOL as in lightly's CIFAR-10 benchmark: ResNet-18, 200 epochs at batch size 512.

    python -m gsjax.main --config configs/byol_lightly_cifar10.py

lightly reports 86.8 % kNN accuracy (k = 200, temperature 0.1, best epoch), and 91.0 % after 800
epochs (`--config.num_epochs=800`). There, the cosine falls once an epoch. The views are those of
the commit that its table names (42a6a924); later versions of the script have BYOL's.
"""

import simclr_lightly_cifar10


def get_config():
    config = simclr_lightly_cifar10.get_config()
    config.method = "byol"
    config.loss.siamese = "cosine"

    config.projector.last_bn = False
    config.projector.hidden_dim = 1024
    config.projector.out_dim = 256
    config.predictor.hidden_dim = 1024
    config.target.momentum = 0.99
    return config
