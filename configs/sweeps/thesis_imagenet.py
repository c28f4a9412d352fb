"""The thesis' four pre-training runs on ImageNet and their evaluations (figures 7 and 8, tables).

Transfer learning and retrieval need --config.transfer.data_dir and --config.retrieval.data_dir.

    python -m gsjax.main --job sweep --config configs/sweeps/thesis_imagenet.py
"""

from gsjax.sweep.plans import Arm, Sweep


def get_sweep():
    return Sweep(
        title="SimCLR and SimSiam on ImageNet, with and without graded similarity",
        arms=(
            Arm("SimCLR", "simclr_imagenet"),
            Arm("SimCLR-GS", "simclr_gs_imagenet"),
            Arm("SimSiam", "simsiam_imagenet"),
            Arm("SimSiam-GS", "simsiam_gs_imagenet"),
        ),
        jobs=("linear", "transfer", "retrieval"),
        shows=("Figure 7c", "Figure 8c", "Table 1", "Table 2", "Table 3"),
    )
