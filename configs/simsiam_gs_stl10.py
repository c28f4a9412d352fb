"""SimSiam-GS: configs/simsiam_stl10.py with graded similarity, the thesis' main experiment.

    python -m gsjax.main --config configs/simsiam_gs_stl10.py

The thesis reports 88.86 % top-1 in linear evaluation.
"""

import simsiam_stl10


def get_config():
    config = simsiam_stl10.get_config()
    config.similarity.measure = "ioa"
    return config
