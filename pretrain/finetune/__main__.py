"""`python -m pretrain.finetune`: see command.py, and scores/compare.py for --compare."""

if __name__ == "__main__":  # before the first package, which a plain python3 lacks
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

import sys

from data_prep.cli import run
from pretrain.finetune import command
from pretrain.finetune.scores import compare

if __name__ == "__main__":
    if "--compare" in sys.argv[1:]:
        run(compare.main, compare.CompareConfig, compare.__doc__)
    run(command.main, command.FinetuneConfig, command.__doc__)
