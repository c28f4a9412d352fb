"""BYOL, ResNet-18, STL-10, 800 epochs at batch size 128.

    python -m gsjax.main --config configs/byol_stl10.py

The recipe of `byol_cifar10` on the data of `simclr_stl10`; nobody has published a number for it.
"""

import byol_cifar10
import simclr_stl10


def get_config():
    config = byol_cifar10.get_config()
    config.data = simclr_stl10.get_config().data
    config.encoder.stem = "imagenet"
    return config
