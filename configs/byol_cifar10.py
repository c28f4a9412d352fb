"""BYOL, ResNet-18, CIFAR-10, 800 epochs at batch size 128.

    python -m gsjax.main --config configs/byol_cifar10.py

The thesis names BYOL but does not train it, and nobody has published this recipe. It is that of
`mocov2_cifar10` with BYOL's heads, loss (the thesis' eq. 3) and a momentum that rises to 1.
"""

import mocov2_cifar10


def get_config():
    config = mocov2_cifar10.get_config()
    config.method = "byol"

    config.projector.hidden_dim = 1024
    config.projector.out_dim = 256
    config.predictor.hidden_dim = 1024
    config.target.final_momentum = 1.0
    return config
