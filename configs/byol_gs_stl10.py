"""BYOL-GS: configs/byol_stl10.py with graded similarity.

    python -m gsjax.main --config configs/byol_gs_stl10.py

Nobody has published a number for it.
"""

import byol_stl10


def get_config():
    config = byol_stl10.get_config()
    config.similarity.measure = "ioa"
    return config
