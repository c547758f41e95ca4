"""``taskmasterctl audit``: the audit log reviewed, verified, and its sealing key made; none needs a taskmasterd."""
