"""The commands that work on a Dagster instance or on this machine, one module for each."""
