"""SimSiam, ResNet-50, ImageNet, 100 epochs at batch size 256 (thesis, section 5 and appendix A).

    python -m gsjax.main --config configs/simsiam_imagenet.py --config.data.data_dir=gs://BUCKET/tfds

The thesis reports 65.29 % top-1 in linear evaluation; the SimSiam paper, 68.3 % with blur 0.5.
"""

import simclr_imagenet


def get_config():
    config = simclr_imagenet.get_config()
    config.method = "simsiam"

    config.projector.num_layers = 3
    config.projector.hidden_dim = 2048
    config.projector.out_dim = 2048
    config.projector.last_bn = True

    config.augment.min_scale = 0.2
    config.augment.brightness = 0.4
    config.augment.contrast = 0.4
    config.augment.saturation = 0.4
    config.augment.hue = 0.1

    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 1e-4
    config.optimizer.fix_pred_lr = True
    config.schedule.warmup_epochs = 0.0
    return config
