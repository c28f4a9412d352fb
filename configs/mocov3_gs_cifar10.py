"""MoCo v3-GS: configs/mocov3_cifar10.py with graded similarity.

    python -m gsjax.main --config configs/mocov3_gs_cifar10.py

Nobody has published a number for it.
"""

import mocov3_cifar10


def get_config():
    config = mocov3_cifar10.get_config()
    config.similarity.measure = "ioa"
    return config
