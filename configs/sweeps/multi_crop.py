"""Two views, and two with four local ones, with and without graded similarity (thesis, 7.2).

The global views keep at least a fifth of the image, so that they differ from the local ones.

    python -m gsjax.main --job sweep --config configs/sweeps/multi_crop.py
"""

from gsjax.sweep.plans import Arm, Sweep

LOCAL = {"crops.local_views": 4, "crops.local_size": 16}
SCALE = {"similarity.scale": 0.5}


def get_sweep():
    return Sweep(
        title="Multi-crop for SimCLR and BYOL on CIFAR-10, 200 epochs",
        arms=(
            Arm("SimCLR", "simclr_cifar10"),
            Arm("SimCLR, 2 + 4", "simclr_cifar10", LOCAL, reference="SimCLR"),
            Arm("SimCLR-GS", "simclr_gs_cifar10", SCALE),
            Arm("SimCLR-GS, 2 + 4", "simclr_gs_cifar10", {**SCALE, **LOCAL}),
            Arm("BYOL", "byol_cifar10"),
            Arm("BYOL, 2 + 4", "byol_cifar10", LOCAL, reference="BYOL"),
            Arm("BYOL-GS", "byol_gs_cifar10"),
            Arm("BYOL-GS, 2 + 4", "byol_gs_cifar10", LOCAL),
        ),
        seeds=(5, 6, 7),
        overrides={"num_epochs": 200, "augment.min_scale": 0.2},
    )
