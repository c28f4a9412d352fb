"""MoCo v3 as facebookresearch/moco-v3 trains ViT-S/16: ImageNet, 300 epochs at batch size 4096.

    python -m gsjax.main --config configs/mocov3_vit_small_imagenet.py \
        --config.data.data_dir=gs://BUCKET/tfds

The repository reports 73.2 % top-1 in linear evaluation (rate 3 per 256 images, batches of 1024:
`--config.linear.batch_size=1024`). A batch of 1024 works too; on fewer
devices, `--config.loss.chunks=N` needs less memory for the same result.
"""

import mocov3_resnet50_imagenet


def get_config():
    config = mocov3_resnet50_imagenet.get_config()
    config.num_epochs = 300

    config.encoder.name = "vit_small"
    config.encoder.heads = 12
    config.encoder.positions = "sincos"
    config.encoder.initializer = "xavier"
    config.encoder.freeze_patches = True

    config.projector.num_layers = 3
    config.predictor.last_bn = True
    config.loss.temperature = 0.2

    config.augment.min_scale = 0.08
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.weight_decay = 0.1
    config.schedule.warmup_epochs = 40.0
    config.linear.learning_rate = 3.0
    return config
