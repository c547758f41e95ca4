"""``taskmasterctl doctor``: what is wrong, in words, and which command mends it."""
