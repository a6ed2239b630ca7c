"""Dagster parts that the assets share."""
