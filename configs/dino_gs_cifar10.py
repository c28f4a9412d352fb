"""DINO-GS: configs/dino_cifar10.py with its pairs weighted by graded similarity.

    python -m gsjax.main --config configs/dino_gs_cifar10.py

Nobody has published a number for it.
"""

import dino_cifar10


def get_config():
    config = dino_cifar10.get_config()
    config.similarity.measure = "ioa"
    config.similarity.form = "weight"
    return config
