"""python -m pretrain.report, which is `zerobert report`: what it does is in command.py."""

if __name__ == "__main__":  # before the first package, which a plain python3 lacks
    from data_prep.interpreter import continue_in_venv

    continue_in_venv()

    from data_prep.cli import run
    from pretrain.report import command

    run(command.main, command.ReportConfig, command.__doc__)
