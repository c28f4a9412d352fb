"""MoCo v2, ResNet-50, ImageNet, 100 epochs at batch size 256, as long as the thesis trains.

    python -m gsjax.main --config configs/mocov2_imagenet.py --config.data.data_dir=gs://BUCKET/tfds

The recipe of `mocov2_official_imagenet`, but each view is query and key. lightly reports 61.5 %
top-1 in linear evaluation after 100 epochs at this batch size. There, the loss has one direction,
biases and BatchNorm do not decay, and BatchNorm is computed per GPU, with shuffled keys; here, it
spans the whole batch.
"""

import mocov2_official_imagenet


def get_config():
    config = mocov2_official_imagenet.get_config()
    config.num_epochs = 100
    config.loss.symmetric = True
    return config
