"""SimSiam, ResNet-18, CIFAR-10, 800 epochs at batch size 256 (thesis, section 5 and appendix A).

    python -m gsjax.main --config configs/simsiam_cifar10.py

The thesis reports 88.71 % top-1 in linear evaluation.
"""

import simclr_cifar10


def get_config():
    config = simclr_cifar10.get_config()
    config.method = "simsiam"
    config.batch_size = 256

    config.projector.hidden_dim = 2048
    config.projector.out_dim = 2048
    config.projector.last_bn = True

    config.augment.min_scale = 0.2
    config.augment.brightness = 0.4
    config.augment.contrast = 0.4
    config.augment.saturation = 0.4
    config.augment.hue = 0.1

    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.03
    config.optimizer.weight_decay = 5e-4
    config.optimizer.fix_pred_lr = True
    config.schedule.warmup_epochs = 0.0
    return config
