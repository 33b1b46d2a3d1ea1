"""Campaigns: what is too long for the default tests. Each breaks a store in every way that it knows, and counts.

Run from the root of the repository with `tests` on the path, as the Makefile does: `PYTHONPATH=tests python -m
campaigns.crash`. Each exits with 1 when anything was lost, corrupt, crashed or leaked.
"""
