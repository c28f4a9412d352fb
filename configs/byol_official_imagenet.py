"""BYOL as google-deepmind/deepmind-research trains it: ResNet-50, ImageNet, 1000 epochs at 4096.

    python -m gsjax.main --config configs/byol_official_imagenet.py \
        --config.data.data_dir=gs://BUCKET/tfds

The paper reports 74.3 % top-1 in linear evaluation, and the repository about 74.4 % with the
zero-initialized residual branches that it and this file have. There, the last layers of projector
and predictor have no bias, and the target network starts from weights of its own. The jitter
differs: brightness adds instead of multiplying, contrast blends each channel with its own mean, and
saturation scales that of HSV. The blur pads with zeros, and crops are resized bicubically, without
antialiasing.
"""

import simclr_imagenet


def get_config():
    config = simclr_imagenet.get_config()
    config.method = "byol"
    config.batch_size = 4096
    config.num_epochs = 1000
    config.encoder.padding = "same"

    config.projector.hidden_dim = 4096
    config.projector.out_dim = 256
    config.predictor.hidden_dim = 4096
    config.loss.siamese = "sum"
    config.target.momentum = 0.996
    config.target.final_momentum = 1.0

    config.augment.crop = "byol"
    config.augment.brightness = 0.4
    config.augment.contrast = 0.4
    config.augment.saturation = 0.2
    config.augment.hue = 0.1
    config.augment.blur = "1.0,0.1"
    config.augment.solarize = "0,0.2"

    config.optimizer.learning_rate = 0.2
    config.optimizer.weight_decay = 1.5e-6
    config.optimizer.rate_after_momentum = True
    return config
