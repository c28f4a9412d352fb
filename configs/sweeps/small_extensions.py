"""Forms of grading, multi-crop and the overlap of views, for the small encoder of small_study.py.

An arm ending in "equal time" has as many steps as fit into the time of its two-view counterpart.
One member takes about ten minutes on one CPU core.

    python -m gsjax.main --job sweep --config configs/sweeps/small_extensions.py
"""

from multi_crop import LOCAL
from overlap import arms_of_ranges
from small_study import SMALL

from gsjax.sweep.plans import Arm, Sweep

STEPS = 390  # an epoch
FEWER = {"num_steps": 205}  # on a CPU, a step with 2 + 4 views takes 1.9 times as long


def _arms(label, name, scale):
    baseline, graded = f"{name}_cifar10", f"{name}_gs_cifar10"
    yield Arm(label, baseline)
    for form in ("regress", "weight", "margin"):
        yield Arm(f"{label}-GS, {form}", graded, {**scale, "similarity.form": form})
    yield Arm(f"{label}, 2 + 4", baseline, LOCAL, reference=label)
    yield Arm(f"{label}, 2 + 4, equal time", baseline, {**LOCAL, **FEWER}, reference=label)
    yield Arm(f"{label}-GS, 2 + 4", graded, {**scale, **LOCAL})
    yield Arm(f"{label}-GS, 2 + 4, equal time", graded, {**scale, **LOCAL, **FEWER})
    yield from arms_of_ranges(label, baseline)


def get_sweep():
    return Sweep(
        title="Forms of grading, multi-crop and overlap at width 16 on CIFAR-10, one epoch",
        arms=(
            *_arms("SimCLR", "simclr", {"similarity.scale": 0.5}),
            *_arms("BYOL", "byol", {}),
        ),
        seeds=(5, 6, 7),
        overrides={**SMALL, "num_steps": STEPS, "knn.every_epochs": 0.0},
    )
