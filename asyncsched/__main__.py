"""``python -m asyncsched`` is ``asyncsched``."""

from asyncsched.cli import main

main()
