"""Networks: encoders, heads, and layers that are fast on CPUs."""
