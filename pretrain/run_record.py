"""What config.json says of a run, by name; run_folder.run_record() makes it.

A file of an older version has fewer fields: whoever reads one that may be of another time asks with .get().
"""

from typing import TypedDict

from data_prep.json_types import JsonObject


class StoreRecord(TypedDict):
    """A store of --data."""

    folder: str
    identity: str
    passes: float  # per epoch, of the first phase


_Origin = TypedDict("_Origin", {"from": str | None}, total=False)  # the checkpoint that these settings began at


class RunRecord(_Origin, total=False):
    """All that is needed to repeat a run, and how it came to these settings."""

    train: JsonObject  # TrainConfig.to_json()
    phases: list[JsonObject]  # Phase.described(), and passes per epoch
    parameters: int
    deepspeed: JsonObject  # DsConfig.content
    outlook: JsonObject  # DataCoverage
    stores: list[StoreRecord]
    samples_version: int
    vocab_sha256: str
    vocab_size: int
    versions: dict[str, str]
    python: str
    git: JsonObject
    init_sha256: str
    eval_pairs_sha256: str
    from_step: int  # where these settings began
    segments: list["RunRecord"]  # the same of the settings before
