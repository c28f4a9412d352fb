"""SimCLR as google-research/simclr trains it: ResNet-50, ImageNet, 100 epochs at batch size 4096.

    python -m gsjax.main --config configs/simclr_google_imagenet.py \
        --config.data.data_dir=gs://BUCKET/tfds

Its README reports 64.5 % top-1 in linear evaluation and about 6 hours on 32 TPU v3 chips.
"""

import simclr_imagenet


def get_config():
    config = simclr_imagenet.get_config()
    config.batch_size = 4096
    config.loss.temperature = 0.1
    config.projector.hidden_dim = 2048
    config.projector.last_bn = True
    config.augment.crop = "tf"
    config.augment.blur = 0.5
    config.checkpoint.every_steps = 1000
    return config
