"""`python -m pretrain.finetune`: see command.py."""

if __name__ == "__main__":  # before the first package, which a plain python3 lacks
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

from data_prep.cli import run
from pretrain.finetune import command

if __name__ == "__main__":
    run(command.main, command.FinetuneConfig, command.__doc__)
