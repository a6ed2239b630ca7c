"""The Dagster assets and their checks."""
