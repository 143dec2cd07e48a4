"""Micrographs: from instrument files to a dataset that does not leak."""
