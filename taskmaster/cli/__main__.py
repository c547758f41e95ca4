"""``python -m taskmaster.cli``: taskmasterctl where it is not installed as a command."""

from taskmaster.cli.main import main

main()
