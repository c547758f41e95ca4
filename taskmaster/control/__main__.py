"""``python -m taskmaster.control``: taskmasterd where it is not installed as a command."""

from taskmaster.control.main import main

main()
