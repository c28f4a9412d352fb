"""DINO with multi-crop, ViT-Ti/4, CIFAR-10, 1000 epochs at batch size 256.

    python -m gsjax.main --config configs/dino_vit_tiny_cifar10.py

Nobody has published this recipe: it is `dino_cifar10` with the optimizer, drop path, temperatures,
momentum and scale of the global crops of `dino_vit_small_imagenet`, and 6 local views of 16 pixels.
"""

import dino_cifar10


def get_config():
    config = dino_cifar10.get_config()
    config.encoder.name = "vit_tiny"
    config.encoder.patch_size = 4
    config.encoder.drop_path = 0.1
    config.target.momentum = 0.996
    config.loss.teacher_temperature = 0.04
    config.loss.first_teacher_temperature = 0.04

    config.crops.local_views = 6
    config.crops.local_size = 16
    config.augment.min_scale = 0.4
    config.augment.solarize = "0,0.2,0"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.weight_decay = 0.04
    config.optimizer.clip = 3.0
    config.schedule.final_weight_decay = 0.4
    config.schedule.final_learning_rate = 1e-6
    return config
