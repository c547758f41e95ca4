"""The watchdog child: runs one job; knows nothing of clients, configuration files or the audit log."""
