"""Lines of metrics.jsonl, and folders of runs that have written them."""

import json


def train(step, seconds=None, **changes):
    return {
        "kind": "train", "step": step, "samples": 64 * step, "tokens": 1000 * step, "loss": 9 - step / 100,
        "mlm_loss": 8.123456 - step / 100, "nsp_loss": 0.7, "mlm_acc": step / 1000, "nsp_acc": 0.5, "lr": step * 1e-6,
        "grad_norm": 1.5, "tokens_per_s": 500.0 + step, "mfu": 0.4, "padding_saved": 0.1,
        "seconds": float(step) if seconds is None else seconds,
    } | changes  # fmt: skip


def held_out(step, loss=6.0, **more):
    return {"kind": "eval", "step": step, "mlm_loss": loss, "mlm_acc": 0.1, "nsp_loss": 0.6, "nsp_acc": 0.7, **more}


def event(step, name, **details):
    return {"kind": "event", "step": step, "event": name, **details}


def run_folder(folder, lines, steps=100, ending="\n", **train_settings):
    folder.mkdir(parents=True)
    config = {
        "train": {"data": ["nowhere"], "model": "bert-tiny", "steps": steps, "seq_len": 128} | train_settings,
        "deepspeed": {
            "train_batch_size": 64, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 4,
            "gradient_clipping": 1.0, "optimizer": {"type": "lamb", "params": {"lr": 1e-3, "betas": [0.9, 0.9995]}},
            "bf16": {"enabled": True}, "zero_optimization": {"stage": 2},
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metrics.jsonl").write_text(text + ending)
    return folder
