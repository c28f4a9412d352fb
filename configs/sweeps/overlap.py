"""Views that overlap little, partly or mostly, without graded similarity.

Graded similarity assumes that views without overlap are too different to be pulled together;
arXiv:2509.11344 finds that such pairs help MoCo v2 and DINO.

    python -m gsjax.main --job sweep --config configs/sweeps/overlap.py
"""

from gsjax.sweep.plans import Arm, Sweep

RANGES = {"0 to 0.2": (0.0, 0.2), "0.2 to 0.5": (0.2, 0.5), "0.5 to 1": (0.5, 1.0)}


def arms_of_ranges(label, config):
    """An arm per range, to compare with the arm `label`."""
    for name, (low, high) in RANGES.items():
        limits = {"crops.min_overlap": low, "crops.max_overlap": high}
        yield Arm(f"{label}, IoU {name}", config, limits, reference=label)


def get_sweep():
    return Sweep(
        title="Overlap of the views of SimCLR and BYOL on CIFAR-10, 200 epochs",
        arms=(
            Arm("SimCLR", "simclr_cifar10"),
            *arms_of_ranges("SimCLR", "simclr_cifar10"),
            Arm("BYOL", "byol_cifar10"),
            *arms_of_ranges("BYOL", "byol_cifar10"),
        ),
        seeds=(5, 6, 7),
        overrides={"num_epochs": 200},
    )
