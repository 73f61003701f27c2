"""The model card of an export: README.md, with the metadata that model hubs read."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pretrain.export.heads import PIPELINES
from pretrain.export.origin import Head
from pretrain.export.sources import ExportSource


def write_card(folder: Path, source: ExportSource, head: Head) -> None:
    """Write README.md with the metadata that model hubs read."""
    evaluation = source.evaluation
    results = []
    if evaluation is not None:
        results = [
            EvalResult("fill-mask", "held-out documents", "held-out documents", name, round(evaluation[key], digits))
            for name, key, digits in (
                ("loss", "mlm_loss", 4),
                ("perplexity", "perplexity", 2),
                ("accuracy", "mlm_acc", 4),
            )
            if key in evaluation
        ]
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINES.get(head),
        tags=["bert", "zerobert"],
        model_name=source.name,
        eval_results=results or None,
    )
    model = source.identity.model
    lines = [
        f"---\n{card.to_yaml()}\n---",
        f"# {source.title}",
        f"A BERT of {model['num_hidden_layers']} layers and hidden size {model['hidden_size']}, {source.story}",
    ]
    if evaluation is not None:
        named = (("accuracy", "mlm_acc"), ("pair accuracy", "nsp_acc"))
        shares = "".join(f", {name} {evaluation[key]:.3f}" for name, key in named if key in evaluation)
        at = evaluation.get("step", source.step)
        when = "" if at == source.step else f" after {at:,} steps"
        lines.append(
            f"On held-out documents{when}: MLM loss {evaluation['mlm_loss']:.3f} nats (perplexity "
            f"{evaluation['perplexity']:.1f}){shares}."
        )
    lines.append("`provenance.json` has the settings, versions and the identity of the data.")
    (folder / "README.md").write_text("\n\n".join(lines) + "\n")
    ModelCard.load(folder / "README.md")  # the metadata parse
