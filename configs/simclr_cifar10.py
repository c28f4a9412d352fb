"""SimCLR, ResNet-18, CIFAR-10, 800 epochs at batch size 1024 (thesis, section 5 and appendix A).

    python -m gsjax.main --config configs/simclr_cifar10.py

The thesis reports 86.28 % top-1 in linear evaluation.
"""

from gsjax.config import defaults


def get_config():
    config = defaults.get_config()
    config.batch_size = 1024
    config.num_epochs = 800
    config.num_steps = 0

    config.data.source = "cifar10"
    config.data.mean = "0.4914,0.4822,0.4465"
    config.data.std = "0.2470,0.2435,0.2616"

    config.encoder.width = 64
    config.similarity.measure = "none"

    config.features.batch_size = 1024
    config.log.every_steps = 50
    return config
