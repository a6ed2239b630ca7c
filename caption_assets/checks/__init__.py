"""Checks of stored tables, without Dagster."""
