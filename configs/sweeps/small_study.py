"""Does graded similarity help a small encoder? The study of docs/pages/results.md.

Takes hours on two CPU cores: one per SimCLR member, 45 minutes per SimSiam member, on one core.

    python -m gsjax.main --job sweep --config configs/sweeps/small_study.py
"""

from gsjax.sweep.plans import Arm, Sweep

SMALL = {
    "encoder.width": 16,
    "batch_size": 128,
    "knn.every_epochs": 1.5385,  # 601 steps
    "checkpoint.every_steps": 200,
}


def get_sweep():
    return Sweep(
        title="A ResNet-18 of width 16 on CIFAR-10, batch 128, with and without graded similarity",
        arms=(
            Arm("SimCLR", "simclr_cifar10", {"num_steps": 2400}),
            Arm("SimCLR-GS", "simclr_gs_cifar10", {"num_steps": 2400}),
            Arm(
                "SimCLR-GS, scale 0.5",
                "simclr_gs_cifar10",
                {"num_steps": 2400, "similarity.scale": 0.5},
            ),
            Arm("SimSiam", "simsiam_cifar10", {"num_steps": 1200}),
            Arm("SimSiam-GS", "simsiam_gs_cifar10", {"num_steps": 1200}),
        ),
        seeds=(5, 6, 7),
        overrides=SMALL,
    )
