"""A `dagster-daemon` that waits less between the iterations of its loops, for tests. Its intervals are no settings."""

from dagster._daemon import controller, sensor
from dagster._daemon.cli import main

if __name__ == "__main__":
    controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 2  # of backfills; Dagster's is 30
    sensor.MIN_INTERVAL_LOOP_TIME = 1  # Dagster's is 5
    main()
