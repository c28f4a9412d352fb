"""The embedded demonstration: SimCLR-GS on tiles of photographs, no download.

    python -m gsjax.main --config configs/demo.py

A few minutes on two CPU cores; kNN goes from 54.5 % (untrained) to 66.3 %, raw pixels give 38.0 %.
"""

from gsjax import defaults


def get_config():
    return defaults.get_config()
