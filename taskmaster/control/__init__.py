"""The control plane: serves clients, keeps the audit log, launches watchdogs; never touches a job's process."""
