"""MoCo v2 as facebookresearch/moco trains it: ResNet-50, ImageNet, 200 epochs at batch size 256.

    python -m gsjax.main --config configs/mocov2_official_imagenet.py \
        --config.data.data_dir=gs://BUCKET/tfds

Its README reports 67.5 % (+- 0.1 over five runs) top-1 in linear evaluation, and 71.1 % after 800
epochs. There, the cosine falls once an epoch, and BatchNorm is computed per GPU, with shuffled
keys; here, BatchNorm spans the whole batch. Its linear evaluation takes 100 epochs, with steps at
60 and 80, where the job `linear` has a cosine (`--config.linear.num_epochs=100` for the length).
"""

import simclr_imagenet


def get_config():
    config = simclr_imagenet.get_config()
    config.method = "mocov2"
    config.num_epochs = 200
    config.encoder.zero_init_residual = False

    config.projector.hidden_dim = 2048
    config.projector.out_dim = 128
    config.loss.temperature = 0.2
    config.loss.symmetric = False
    config.queue.size = 65536
    config.target.momentum = 0.999

    config.augment.min_scale = 0.2
    config.augment.brightness = 0.4
    config.augment.contrast = 0.4
    config.augment.saturation = 0.4
    config.augment.hue = 0.1
    config.augment.blur = 0.5

    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.03
    config.optimizer.weight_decay = 1e-4
    config.schedule.warmup_epochs = 0.0
    return config
