"""BYOL-GS: configs/byol_cifar10.py with graded similarity.

    python -m gsjax.main --config configs/byol_gs_cifar10.py

Nobody has published a number for it.
"""

import byol_cifar10


def get_config():
    config = byol_cifar10.get_config()
    config.similarity.measure = "ioa"
    return config
