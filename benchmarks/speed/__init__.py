"""MVaEMa beside BLIP of transformers, the same shapes, the same work (see `__main__`)."""
