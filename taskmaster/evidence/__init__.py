"""What makes the audit log evidence: canonical records, the chain of their hashes, seals, and their verification.

Pure, and shared by who writes the log and who verifies it: no clock, no file, no process.
"""
