"""Attacks, one file per technique, and what they share: strength and poisoning. Importing this loads no torch."""
