"""The wire, sans-I/O: bytes to frames to messages and back, for clients and for watchdog links."""
