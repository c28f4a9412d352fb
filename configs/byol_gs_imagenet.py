"""BYOL-GS: configs/byol_imagenet.py with graded similarity.

    python -m gsjax.main --config configs/byol_gs_imagenet.py \
        --config.data.data_dir=gs://BUCKET/tfds

Nobody has published a number for it.
"""

import byol_imagenet


def get_config():
    config = byol_imagenet.get_config()
    config.similarity.measure = "ioa"
    return config
