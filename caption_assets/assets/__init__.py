"""The Dagster assets, thin: what runs when, and what the UI shows."""
