"""Automation: sensors, a schedule and alerts, and the commands that change a project's shards and records."""
