"""Attacks, one file per technique, and what they share: triggers, their strength, and poisoning. Importing this loads no torch."""
