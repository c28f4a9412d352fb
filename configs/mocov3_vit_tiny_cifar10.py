"""MoCo v3, ViT-Ti/4, CIFAR-10, 1000 epochs at batch size 256.

    python -m gsjax.main --config configs/mocov3_vit_tiny_cifar10.py

Nobody has published this recipe: it is `mocov3_cifar10` with the projector, predictor, initial
weights and optimizer of `mocov3_vit_small_imagenet`.
"""

import mocov3_cifar10


def get_config():
    config = mocov3_cifar10.get_config()
    config.encoder.name = "vit_tiny"
    config.encoder.patch_size = 4
    config.encoder.positions = "sincos"
    config.encoder.initializer = "xavier"
    config.encoder.freeze_patches = True

    config.projector.num_layers = 3
    config.predictor.last_bn = True

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.weight_decay = 0.1
    config.schedule.warmup_epochs = 40.0
    return config
