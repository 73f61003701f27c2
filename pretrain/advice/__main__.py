"""python -m pretrain.advice, which is `zerobert plan`: what it does is in command.py."""

if __name__ == "__main__":  # before the first package, which a plain python3 lacks
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

    from data_prep.cli import run
    from pretrain.advice import command

    run(command.main, command.AdviceConfig, command.__doc__)
