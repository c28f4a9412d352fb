"""SimCLR-GS: configs/simclr_stl10.py with graded similarity, the thesis' main experiment.

    python -m gsjax.main --config configs/simclr_gs_stl10.py

The thesis reports 88.19 % top-1 in linear evaluation.
"""

import simclr_stl10


def get_config():
    config = simclr_stl10.get_config()
    config.similarity.measure = "ioa"
    return config
