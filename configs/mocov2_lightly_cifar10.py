"""MoCo as in lightly's CIFAR-10 benchmark: ResNet-18, 200 epochs at batch size 512.

    python -m gsjax.main --config configs/mocov2_lightly_cifar10.py

lightly reports 84.7 % kNN accuracy (k = 200, temperature 0.1, best epoch), and 89.9 % after 800
epochs (`--config.num_epochs=800`). There, BatchNorm splits the batch in 8 and the keys are
shuffled, the queue takes the keys of one direction before the other, and the cosine falls once an
epoch; here, BatchNorm spans the whole batch and both directions see the same queue.
"""

import simclr_lightly_cifar10


def get_config():
    config = simclr_lightly_cifar10.get_config()
    config.method = "mocov2"
    config.projector.last_bn = False
    config.loss.temperature = 0.1
    config.queue.size = 8192
    config.target.momentum = 0.99
    return config
