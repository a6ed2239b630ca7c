"""Names and meanings of the metadata that the sensor ``status_report`` reports."""

from caption_assets.dagster_lib.metadata import ERROR

SHOWN_REASONS = 10
"""Maximum number of reasons in a table of ``shard_index``."""
STALE_BECAUSE = "stale_because"
"""Name of the table of changes on a stale partition."""
PARTITION_MEANINGS = {
    STALE_BECAUSE: "What changed since the partition was made, in an observation; a minute after the change",
    ERROR: "Reason why the partition could not be made, in an observation",
}
"""Meaning of each metadata entry of a table's observations."""
STATUS_MEANINGS = {
    "shards_complete": "Number of shards with current captions of all stages, a few minutes ago at most",
    "shards_stale": "Number of shards with captions by other settings or from other inputs than the present ones",
    "shards_failed": "Number of shards that the last run has not completed",
    "shards_missing": "Number of registered shards without a manifest or the captions of a stage",
    "status": "Number of shards by table and state, and the number of their rows",
    "stale_tables": f"What changed since tables were made: the {SHOWN_REASONS} most frequent changes",
    "failures": f"Why shards failed: the {SHOWN_REASONS} most frequent reasons",
}
"""Meaning of each metadata entry of ``shard_index`` that the sensor adds."""
