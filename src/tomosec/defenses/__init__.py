"""Defenses, one file per technique: found by being here, or by the entry point ``tomosec.defense`` of another distribution."""
