"""The command line, taskmasterctl: imports wire and errors, nothing of the daemon."""
