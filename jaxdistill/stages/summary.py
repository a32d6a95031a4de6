"""`summary.json`: one row for each given teacher and each finished stage."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

import jaxdistill
from jaxdistill.atomic import atomic_write_json
from jaxdistill.report.columns import measures_of
from jaxdistill.run_directory import read_inference


@dataclass
class Summary:
    """What a run has measured so far; `rows` in the order they were finished."""

    name: str
    directory: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row, its retention against the first row's model filled in."""
        row["retention"] = _retention(row, self.rows[0]) if self.rows and not row["given"] else None
        self.rows.append(row)

    def to_dict(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        device, found = jax.devices()[0], read_inference(self.directory)
        return {
            "name": self.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "jaxdistill": jaxdistill.__version__,
            "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
            "stages": [row | ({"inference": found[row["key"]]} if row["key"] in found else {}) for row in self.rows],
        }

    def write(self) -> Path:
        """Write `summary.json` atomically and return its path."""
        path = self.directory / "summary.json"
        atomic_write_json(path, self.to_dict())
        return path


def _retention(row: dict[str, Any], first: dict[str, Any]) -> dict[str, float]:
    """What is left of the first teacher, for each split: the headline divided by its (a perplexity turned over)."""
    found = {}
    for split, ours in row["eval"].items():
        theirs = first["eval"].get(split, {})
        if "perplexity" in ours:
            if ours["perplexity"] and theirs.get("perplexity"):
                found[split] = theirs["perplexity"] / ours["perplexity"]
        elif theirs.get(headline := measures_of(ours.keys()).headline.key):
            found[split] = ours[headline] / theirs[headline]
    return found
