"""DINO-GS: configs/dino_resnet50_imagenet.py with its pairs weighted by graded similarity.

    python -m gsjax.main --config configs/dino_gs_resnet50_imagenet.py \
        --config.data.data_dir=gs://BUCKET/tfds

Nobody has published a number for it.
"""

import dino_resnet50_imagenet


def get_config():
    config = dino_resnet50_imagenet.get_config()
    config.similarity.measure = "ioa"
    config.similarity.form = "weight"
    return config
