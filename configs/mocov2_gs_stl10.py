"""MoCo v2-GS: configs/mocov2_stl10.py with graded similarity.

    python -m gsjax.main --config configs/mocov2_gs_stl10.py

Nobody has published a number for it.
"""

import mocov2_stl10


def get_config():
    config = mocov2_stl10.get_config()
    config.similarity.measure = "ioa"
    return config
