"""SimSiam as facebookresearch/simsiam trains it: ResNet-50, ImageNet, 100 epochs at batch size 512.

    python -m gsjax.main --config configs/simsiam_official_imagenet.py \
        --config.data.data_dir=gs://BUCKET/tfds

Its README reports 68.1 % top-1 in linear evaluation.
"""

import simsiam_imagenet


def get_config():
    config = simsiam_imagenet.get_config()
    config.batch_size = 512
    config.loss.siamese = "cosine"
    config.augment.blur = 0.5
    return config
