"""LARS or SGD at small batch sizes, where LARS should not be needed (thesis, section 7.2).

python -m gsjax.main --job sweep --config configs/sweeps/optimizer.py
"""

from gsjax.sweep.plans import Arm, Sweep

SGD = {  # as for SimSiam on CIFAR-10
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.03,
    "optimizer.weight_decay": 5e-4,
}


def get_sweep():
    return Sweep(
        title="LARS or SGD for SimCLR and SimCLR-GS on CIFAR-10, 200 epochs",
        arms=(
            Arm("SimCLR, LARS", "simclr_cifar10"),
            Arm("SimCLR-GS, LARS", "simclr_gs_cifar10"),
            Arm("SimCLR, SGD", "simclr_cifar10", SGD),
            Arm("SimCLR-GS, SGD", "simclr_gs_cifar10", SGD),
        ),
        overrides={"num_epochs": 200},
        axis="batch_size",
        values=(128, 256, 512),
    )
