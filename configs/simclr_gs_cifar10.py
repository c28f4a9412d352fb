"""SimCLR-GS: configs/simclr_cifar10.py with graded similarity, the thesis' main experiment.

    python -m gsjax.main --config configs/simclr_gs_cifar10.py

The thesis reports 87.19 % top-1 in linear evaluation.
"""

import simclr_cifar10


def get_config():
    config = simclr_cifar10.get_config()
    config.similarity.measure = "ioa"
    return config
