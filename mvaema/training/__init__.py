"""Training: from a micrograph dataset to a student."""
