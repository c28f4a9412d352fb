"""MoCo v3-GS: configs/mocov3_vit_small_imagenet.py with graded similarity.

    python -m gsjax.main --config configs/mocov3_gs_vit_small_imagenet.py \
        --config.data.data_dir=gs://BUCKET/tfds

Nobody has published a number for it.
"""

import mocov3_vit_small_imagenet


def get_config():
    config = mocov3_vit_small_imagenet.get_config()
    config.similarity.measure = "ioa"
    return config
