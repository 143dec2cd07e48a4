"""The library behind the commands: reading micrographs, the teacher, training, scoring."""
