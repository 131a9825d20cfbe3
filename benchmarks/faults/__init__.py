"""Faults against a real router process, and what callers saw of them; see README.md."""
