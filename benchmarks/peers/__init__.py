"""Other schedulers at the same work.

Each module runs in an environment of its own, so it imports nothing but its peer and the meter.
"""
