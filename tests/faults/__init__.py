"""Faults made on purpose, and what the database holds afterwards: ``python -m tests.faults``."""
