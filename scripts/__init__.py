"""What `make` runs beside the tests: set-up, demo, lock files, licences."""
