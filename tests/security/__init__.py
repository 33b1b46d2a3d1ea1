"""A program that tries what a container should not be able to do (probe.c), where it runs, and the table made of it."""
