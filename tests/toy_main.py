"""The command line of gsjax with one more row: the encoder of `toy_encoder.py`."""

from gsjax.models import ENCODERS, EncoderRow


def add_row():
    """Adds the row to the table, without importing JAX."""
    width = "encoder.width"
    settings = {width: ENCODERS["resnet18"].settings[width]}
    ENCODERS["toy"] = EncoderRow("toy_encoder", "one convolution", settings)


if __name__ == "__main__":
    from gsjax import main

    add_row()
    main.main()
