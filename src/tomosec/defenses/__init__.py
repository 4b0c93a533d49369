"""Defenses, one file per technique. This version has none; a plug-in may add its own (entry point `tomosec.defense`)."""
