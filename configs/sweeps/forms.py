"""Three forms of grading: the thesis' regression, psi as a weight, and a margin.

python -m gsjax.main --job sweep --config configs/sweeps/forms.py
"""

from gsjax.sweep.plans import Arm, Sweep


def get_sweep():
    return Sweep(
        title="Forms of grading of SimCLR and BYOL on CIFAR-10, 200 epochs",
        arms=(
            Arm("SimCLR", "simclr_cifar10", is_on_axis=False),
            Arm("SimCLR-GS, scale 0.5", "simclr_gs_cifar10", {"similarity.scale": 0.5}),
            Arm("BYOL", "byol_cifar10", is_on_axis=False),
            Arm("BYOL-GS", "byol_gs_cifar10"),
        ),
        seeds=(5, 6, 7),
        overrides={"num_epochs": 200},
        axis="similarity.form",
        values=("regress", "weight", "margin"),
    )
