"""Embedding providers behind one port. A new one is one file and one line in `registry`."""
