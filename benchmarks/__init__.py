"""What asyncsched costs and what it reaches, beside its peers and beside the limits of the machine.

``python -m benchmarks core`` measures and judges, ``python -m benchmarks profile`` shows where the time goes; README.md says
what each figure means. Each measurement runs in a process of its own, so that none inherits another's garbage, and the
contestants of one figure take turns, so that a load from elsewhere meets all of them alike.
"""
