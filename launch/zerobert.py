"""zerobert: BERT from zero, on DeepSpeed ZeRO.

    zerobert COMMAND --help        its options, with examples

Each is the same as its own file: `zerobert shard` is `python data_prep/shard.py`.
"""

import difflib
import os
import runpy
import sys
from importlib.metadata import version
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # called by its path, where nothing is installed

from data_prep.calls import COMMANDS, PRETRAIN, ROOT, hand_on


def main() -> None:
    """Run the command that the first argument names, as if its own file had been called."""
    arguments = sys.argv[1:]
    if not arguments:
        print(overview(), file=sys.stderr)
        sys.exit(2)
    name, *others = arguments
    if name in ("-h", "--help", "help"):
        print(overview())
    elif name == "--version":
        print(f"zerobert {version('zerobert')}")
    elif name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        known = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"error: zerobert has no command {name!r}; {known}", file=sys.stderr)
        sys.exit(2)
    else:
        hand_on()
        if name == "train":
            pretrain(others)
        sys.argv = [name, *others]
        runpy.run_module(COMMANDS[name].module, run_name="__main__", alter_sys=True)


def pretrain(arguments: list[str]) -> None:
    """Become launch/pretrain.sh, with the DeepSpeed of this Python before any other."""
    beside = Path(sys.executable).parent
    if (beside / "deepspeed").exists():
        os.environ["PATH"] = f"{beside}:{os.environ.get('PATH', os.defpath)}"
    os.execvp("bash", ["bash", str(ROOT / PRETRAIN), *arguments])


def overview() -> str:
    """Return what there is, a line per command."""
    width = max(map(len, COMMANDS))
    lines = [f"    {name:{width}}  {command.what}" for name, command in COMMANDS.items()]
    return "\n".join([(__doc__ or "").rstrip(), "", *lines])


if __name__ == "__main__":
    main()
