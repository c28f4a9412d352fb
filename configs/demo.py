"""The embedded demonstration: SimCLR-GS on tiles of photographs, no download.

    python -m gsjax.main --config configs/demo.py

DEMO_EXPECT
"""

from gsjax import defaults


def get_config():
    return defaults.get_config()
