"""SimSiam, ResNet-18, STL-10, 800 epochs at batch size 256 (thesis, section 5 and appendix A).

    python -m gsjax.main --config configs/simsiam_stl10.py

The thesis reports 88.57 % top-1 in linear evaluation.
"""

import simclr_stl10
import simsiam_cifar10


def get_config():
    config = simsiam_cifar10.get_config()
    config.data = simclr_stl10.get_config().data
    config.encoder.stem = "imagenet"
    config.augment.blur = 0.2
    return config
