"""Threshold lambda at four values, for the small encoder of small_study.py.

At scale 0.5 and lambda = 0, the loss is NT-Xent plus a constant: that end of the axis is SimCLR.

    python -m gsjax.main --job sweep --config configs/sweeps/small_threshold.py
"""

from small_study import SMALL

from gsjax.sweep.plans import Arm, Sweep


def get_sweep():
    return Sweep(
        title="Threshold lambda of SimCLR-GS, ResNet-18 of width 16 on CIFAR-10, 1,200 steps",
        arms=(Arm("SimCLR-GS, scale 0.5", "simclr_gs_cifar10", {"similarity.scale": 0.5}),),
        seeds=(5, 6),
        overrides={**SMALL, "num_steps": 1200},
        axis="similarity.threshold",
        values=(0.0, 0.25, 0.5, 1.0),
        shows=("Figure 10",),
    )
