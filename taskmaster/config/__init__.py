"""Configuration: job files, the daemon's own file, the job directory and its history."""
