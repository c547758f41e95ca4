"""The daemon's own life: its upgrade, what of it survives that, and its end."""
