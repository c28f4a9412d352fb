"""DINO as facebookresearch/dino trains ViT-S/16: ImageNet, 100 epochs at batch size 512.

    python -m gsjax.main --config configs/dino_vit_small_imagenet.py \
        --config.data.data_dir=gs://BUCKET/tfds

The repository reports 69.3 % top-1 by kNN (k = 20, weights exp(cos / 0.07)) and 74.0 % in linear
evaluation of the class tokens of the last four blocks, which no job here does. There, the warmup
reaches its end a step earlier. For its 300 epochs (73.3 % and 76.0 %) set
`--config.num_epochs=300 --config.batch_size=1024 --config.prototypes.unit=false
--config.loss.teacher_temperature=0.07 --config.loss.teacher_warmup_epochs=30`.
"""

import simclr_imagenet


def get_config():
    config = simclr_imagenet.get_config()
    config.method = "dino"
    config.batch_size = 512

    config.encoder.name = "vit_small"
    config.encoder.drop_path = 0.1
    config.projector.num_layers = 3
    config.projector.hidden_dim = 2048
    config.projector.out_dim = 256
    config.target.momentum = 0.996
    config.target.final_momentum = 1.0

    config.crops.local_views = 8
    config.crops.local_size = 96
    config.augment.interpolation = "bicubic"
    config.augment.min_scale = 0.4
    config.augment.brightness = 0.4
    config.augment.contrast = 0.4
    config.augment.saturation = 0.2
    config.augment.hue = 0.1
    config.augment.blur = "1.0,0.1,0.5"
    config.augment.solarize = "0,0.2,0"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.weight_decay = 0.04
    config.optimizer.clip = 3.0
    config.schedule.final_weight_decay = 0.4
    config.schedule.final_learning_rate = 1e-6
    config.features.interpolation = "bicubic"
    return config
