"""The pure core: what a job is, which states it has, what follows from what. No clock, no OS, no I/O."""
