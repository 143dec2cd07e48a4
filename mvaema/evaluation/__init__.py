"""Evaluation: answers of a student, their scores, and the report."""
