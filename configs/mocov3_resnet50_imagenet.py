"""MoCo v3 as facebookresearch/moco-v3 trains ResNet-50: ImageNet, 100 epochs at batch size 4096.

    python -m gsjax.main --config configs/mocov3_resnet50_imagenet.py \
        --config.data.data_dir=gs://BUCKET/tfds

The repository reports 68.9 % top-1 in linear evaluation. After 300 epochs with
`--config.optimizer.learning_rate=0.3` it reports 72.8 %; after 1000, also with
`--config.optimizer.weight_decay=1.5e-6 --config.target.momentum=0.996`, 74.6 %.
"""

import simclr_imagenet


def get_config():
    config = simclr_imagenet.get_config()
    config.method = "mocov3"
    config.batch_size = 4096

    config.projector.hidden_dim = 4096
    config.projector.out_dim = 256
    config.projector.last_bn = True
    config.predictor.hidden_dim = 4096
    config.loss.temperature = 1.0
    config.target.momentum = 0.99
    config.target.final_momentum = 1.0

    config.augment.min_scale = 0.2
    config.augment.brightness = 0.4
    config.augment.contrast = 0.4
    config.augment.saturation = 0.2
    config.augment.hue = 0.1
    config.augment.blur = "1.0,0.1"
    config.augment.solarize = "0,0.2"

    config.optimizer.learning_rate = 0.6
    config.optimizer.weight_decay = 1e-6
    config.optimizer.rate_after_momentum = True
    return config
