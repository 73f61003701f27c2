"""What a rank leaves in RUN/hang shortly before a hang ends it: where it stands, and which collectives it waits in.

    write_dump(run, rank, seconds) -> [paths]
    RUN/hang/rank-00001.txt     the stacks of all its threads, and the newest collectives in words
    RUN/hang/rank-00001.json    torch's flight recorder: the newest collectives, NCCL's and gloo's, as torch writes them

A rank without a file was stopped, or its node is gone: the others wait for it. The recorder is on by default, with
room for 2,000 collectives (TORCH_FR_BUFFER_SIZE); its JSON, unlike its pickle, can be read safely.
"""

import faulthandler
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from data_prep.json_types import JsonObject

NEWEST = 8  # collectives that are told in words
# Of torch's two recorders the first has what NCCL does, and is there where torch knows NCCL; the second has gloo's.
RECORDERS = ("_dump_nccl_trace_json", "_dump_fr_trace_json")


def write_dump(run: Path, rank: int, seconds: float) -> list[Path]:
    """Write both files of a rank that has seen no progress for so many seconds; returns them.

    Raises
    ------
    OSError: from the disk.
    """
    folder = run / "hang"
    folder.mkdir(exist_ok=True)
    text = folder / f"rank-{rank:05d}.txt"
    with open(text, "w") as file:
        when = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        file.write(f"rank {rank} on {socket.gethostname()}, process {os.getpid()}, {when}\n")
        file.write(f"no rank has made progress for {seconds:.0f} seconds\n\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
        file.flush()  # all that needs no library is there
        recorded = recorded_collectives()
        file.write("\n" + in_words(recorded, time.time_ns()) + "\n")
    trace = text.with_suffix(".json")
    trace.write_text(json.dumps(recorded))
    return [text, trace]


def recorded_collectives() -> JsonObject:
    """Return what torch's flight recorders have, by their names; nothing of ranks that have not met."""
    c10d: Any = getattr(sys.modules.get("torch._C"), "_distributed_c10d", None)  # not imported for this
    found: JsonObject = {}
    for name in RECORDERS:
        if dump := getattr(c10d, name, None):
            try:
                found[name.removeprefix("_dump_").removesuffix("_trace_json")] = json.loads(dump())
            except (RuntimeError, ValueError) as error:
                found[name] = {"error": str(error).partition("\n")[0]}
    return found


def in_words(recorded: JsonObject, now: int) -> str:
    """Return the newest collectives, of each recorder, a line each; `now` in nanoseconds."""
    lines = []
    for name, trace in recorded.items():
        entries = [entry for entry in trace.get("entries", []) if isinstance(entry, dict)]
        if entries:
            lines.append(f"collectives ({name}), the newest last:")
            lines += [_entry_in_words(entry, now) for entry in entries[-NEWEST:]]
    return "\n".join(lines) or "no collectives are recorded"


def _entry_in_words(entry: JsonObject, now: int) -> str:
    is_done = entry.get("retired") or entry.get("state") == "completed"
    what = f"{entry.get('profiling_name')} number {entry.get('collective_seq_id')}"
    group = " ".join(map(str, entry.get("process_group", [])))
    shapes = f"{entry.get('input_sizes')} {entry.get('input_dtypes')}"
    since = (now - entry.get("time_created_ns", now)) / 1e9
    return f"  {'done' if is_done else 'WAITS'}  {what} of group {group}, {shapes}, begun {since:.1f} s ago"
