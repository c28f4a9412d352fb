"""MoCo v2-GS: configs/mocov2_cifar10.py with graded similarity.

    python -m gsjax.main --config configs/mocov2_gs_cifar10.py

Nobody has published a number for it.
"""

import mocov2_cifar10


def get_config():
    config = mocov2_cifar10.get_config()
    config.similarity.measure = "ioa"
    return config
