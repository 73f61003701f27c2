"""What docs/run.md says that a run writes.

described("## config.json")     names in the first column of the table that follows these words
file_fields("state.json")       fields of a file of a checkpoint
undescribed(run)                what a run's files hold and the page does not name
"""

import json
import re
from pathlib import Path

from data_prep.cli import ROOT

PAGE = (ROOT / "docs/run.md").read_text()


def described(above: str) -> set[str]:
    """Return the names in the first column of the table that follows these words."""
    table = PAGE.partition(above)[2].partition("|\n|---|")[2].partition("\n\n")[0]
    return {name for row in table.splitlines()[1:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def file_fields(name: str) -> set[str]:
    """Return the fields of a file of a checkpoint, but for those within other fields."""
    (row,) = re.findall(rf"^\| `{re.escape(name)}` \| (.*) \|$", PAGE, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row)))


def undescribed(run: Path) -> set[str]:
    """Return fields and events in the files of a run which the page lacks."""
    found = set()
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        if line["kind"] == "event":
            found |= {line["event"]} - described('**`"kind": "event"`**')
        elif line["kind"] != "trust":
            known = described(f'**`"kind": "{line["kind"]}"`**') | {"kind", "step"}
            found |= {name.removeprefix("avg_") for name in line} - known
    found |= json.loads((run / "config.json").read_text()).keys() - described("## config.json") - {"sha256"}
    for path in run.glob("checkpoints/step-*/*.json"):
        found |= json.loads(path.read_text()).keys() - file_fields(path.name)
    return found
