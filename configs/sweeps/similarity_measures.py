"""Intersection over area or over union as the overlap measure (thesis, figure 9).

python -m gsjax.main --job sweep --config configs/sweeps/similarity_measures.py
"""

from gsjax.sweep.plans import Arm, Sweep


def get_sweep():
    return Sweep(
        title="IoA or IoU as the similarity measure of SimCLR-GS on CIFAR-10, 200 epochs",
        arms=(
            Arm("SimCLR", "simclr_cifar10"),
            Arm("SimCLR-GS, IoA", "simclr_gs_cifar10"),
            Arm("SimCLR-GS, IoU", "simclr_gs_cifar10", {"similarity.measure": "iou"}),
        ),
        overrides={"num_epochs": 200},
        shows=("Figure 9",),
    )
