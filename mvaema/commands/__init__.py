"""The command line: one module per sub-command, each with `main(argv, prog)`.

A module holds the parser and what is printed; the work is done by the stage's own folder.
"""
