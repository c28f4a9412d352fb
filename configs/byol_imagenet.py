"""BYOL, ResNet-50, ImageNet, 100 epochs at batch size 4096, as long as the thesis trains.

    python -m gsjax.main --config configs/byol_imagenet.py --config.data.data_dir=gs://BUCKET/tfds

The recipe of `byol_official_imagenet` with its rates for 100 epochs, the thesis' form of the loss
(eq. 3, half of BYOL's) and PyTorch's padding. lightly reports 62.5 % top-1 in linear evaluation
after 100 epochs at batch size 256; there, both directions of the loss are summed, residual branches
are not initialized with zeros, and crops are torchvision's.
"""

import byol_official_imagenet


def get_config():
    config = byol_official_imagenet.get_config()
    config.num_epochs = 100
    config.encoder.padding = "torch"
    config.loss.siamese = "mse"
    config.target.momentum = 0.99

    config.optimizer.learning_rate = 0.45
    config.optimizer.weight_decay = 1e-6
    return config
