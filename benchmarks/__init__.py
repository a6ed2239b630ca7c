"""Scripts that measure. Each ends with one line of JSON."""
