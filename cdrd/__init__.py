"""cdrd keeps every call record that a PBX reports: streamed reports in, rows and log lines out."""

__version__ = "0.1.0"
