"""``taskmasterctl audit``: the audit log reviewed and verified, its sealing key made; needs no taskmasterd."""
