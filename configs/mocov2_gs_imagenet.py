"""MoCo v2-GS: configs/mocov2_imagenet.py with graded similarity.

    python -m gsjax.main --config configs/mocov2_gs_imagenet.py \
        --config.data.data_dir=gs://BUCKET/tfds

Nobody has published a number for it.
"""

import mocov2_imagenet


def get_config():
    config = mocov2_imagenet.get_config()
    config.similarity.measure = "ioa"
    return config
