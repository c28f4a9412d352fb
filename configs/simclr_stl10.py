"""SimCLR, ResNet-18, STL-10, 800 epochs at batch size 1024 (thesis, section 5 and appendix A).

    python -m gsjax.main --config configs/simclr_stl10.py

The thesis reports 87.98 % top-1 in linear evaluation. Pre-training uses the 100,000 unlabeled and
the 5,000 training images; the kNN monitor uses the training images as its labeled images.
"""

import simclr_cifar10


def get_config():
    config = simclr_cifar10.get_config()
    config.data.source = "stl10"
    config.data.split = "train+unlabelled"
    config.data.image_size = 96
    config.data.mean = "0.4467,0.4398,0.4066"
    config.data.std = "0.2603,0.2566,0.2713"
    config.encoder.stem = "imagenet"
    config.augment.blur = 0.2
    return config
