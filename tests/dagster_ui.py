"""Dagster's web UI over HTTP: its GraphQL API, and whether it responds."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DagsterUI:
    """The UI at an address."""

    url: str

    def query(self, text: str, **variables: object) -> Any:
        """Data of the response to a GraphQL query."""
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["data"]

    def responds(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/server_info", timeout=5)
        except OSError:
            return False
        return True
