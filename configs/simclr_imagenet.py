"""SimCLR, ResNet-50, ImageNet, 100 epochs at batch size 256 (thesis, section 5 and appendix A).

    python -m gsjax.main --config configs/simclr_imagenet.py --config.data.data_dir=gs://BUCKET/tfds

The thesis reports 63.60 % top-1 in linear evaluation. `--config.encoder.dtype=bfloat16` computes in
half precision on accelerators; parameters, statistics and the loss stay in float32.
"""

from gsjax.config import defaults


def get_config():
    config = defaults.get_config()
    config.batch_size = 256
    config.num_epochs = 100
    config.num_steps = 0

    config.data.source = "imagenet2012"
    config.data.test_split = "validation"
    config.data.image_size = 224

    config.encoder.name = "resnet50"
    config.encoder.width = 64
    config.encoder.stem = "imagenet"

    config.similarity.measure = "none"
    config.augment.blur = 0.2

    config.features.batch_size = 1024
    config.knn.baselines = False
    config.checkpoint.every_steps = 5000
    config.log.every_steps = 50
    return config
