"""Dagster helpers that the assets share."""
