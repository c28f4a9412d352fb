"""MoCo v3-GS: configs/mocov3_resnet50_imagenet.py with graded similarity.

    python -m gsjax.main --config configs/mocov3_gs_resnet50_imagenet.py \
        --config.data.data_dir=gs://BUCKET/tfds

Nobody has published a number for it.
"""

import mocov3_resnet50_imagenet


def get_config():
    config = mocov3_resnet50_imagenet.get_config()
    config.similarity.measure = "ioa"
    return config
