"""The library of the course: one module per lecture chapter over a small `base`."""
