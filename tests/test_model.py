"""The padding-free step against transformers' plain padded forward: losses and the gradient of every tensor."""

from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForPreTraining

from data_prep.cli import InputError
from data_prep.samples.masking import Masking
from data_prep.samples.mixture import Mixture
from pretrain.attention import PRODUCTS_MOST, SeqLens, use_varlen_attention, varlen_attention
from pretrain.data import collate
from pretrain.model import (
    PADDING_BIAS,
    VOCAB_MULTIPLE,
    Batch,
    PretrainingModule,
    build_model,
    compile_layers,
    parameter_groups,
)
from pretrain.token_loss import TokenDecoder
from tests.stores import random_documents, store_of

VOCAB = 90  # no multiple of 64


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    store = store_of(tmp_path, random_documents(30, vocab_size=VOCAB), vocab_size=VOCAB)
    epoch = Mixture([store], [1.0], seq_len=48, objective="nsp", seed=2).epoch(0)
    return collate((store,), epoch.samples_at(np.arange(10)), Masking())


def tiny_model(**changes) -> BertForPreTraining:
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=64, **changes,
    )  # fmt: skip
    torch.manual_seed(3)
    return BertForPreTraining(config)


def padded_losses(model: BertForPreTraining, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The two sums as transformers computes them: padded, logits everywhere, labels -100 where nothing is masked."""
    lengths = torch.tensor(batch.seqlens.lengths)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids, types, labels = (torch.zeros(mask.shape, dtype=torch.long) for _ in range(3))
    ids[mask], types[mask] = batch.input_ids, batch.token_types
    flat = torch.full_like(batch.input_ids, -100)
    flat[batch.head_rows[batch.mlm_index]] = batch.mlm_labels
    labels.fill_(-100)
    labels[mask] = flat
    output = model(input_ids=ids, token_type_ids=types, attention_mask=mask.long())
    return (
        cross_entropy(output.prediction_logits.flatten(0, 1), labels.flatten(), reduction="sum"),
        cross_entropy(output.seq_relationship_logits, batch.nsp_labels, reduction="sum"),
    )


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_losses_and_gradients_equal_the_padded_forward(batch, implementation):
    assert len(set(batch.seqlens.lengths)) > 2, "the batch must need padding"
    theirs = tiny_model()
    theirs.set_attn_implementation(implementation)
    expected = padded_losses(theirs, batch)
    expected_gradients = gradients(theirs, expected[0] + expected[1])

    ours = tiny_model()
    ours.load_state_dict(theirs.state_dict())
    use_varlen_attention(ours)
    losses = PretrainingModule(ours)(batch)
    torch.testing.assert_close(losses.mlm, expected[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.nsp, expected[1], rtol=1e-5, atol=0)
    found = gradients(ours, losses.mlm + losses.nsp)
    assert found.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        if name.endswith("attention.self.key.bias"):  # truly 0: both hold rounding noise
            assert found[name].norm() < 1e-4
            continue
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("dimensions", [64, 24])  # of a head
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float32, 2e-6)])
def test_attention_follows_float64(dtype, bound, dimensions):
    lengths = [PRODUCTS_MOST + 1, PRODUCTS_MOST, 9, 9, 9, 1]
    generator = torch.Generator().manual_seed(1)
    q, k, v, weight = (torch.randn(sum(lengths), 2, dimensions, generator=generator).to(dtype) for _ in range(4))
    seqlens = SeqLens.from_bounds(np.cumsum([0, *lengths]))

    def run(kind: torch.dtype) -> list[torch.Tensor]:
        query, key, value = (x.to(kind, copy=True).requires_grad_() for x in (q, k, v))
        out = varlen_attention(query, key, value, seqlens, seqlens, 0.125)
        return [out.detach(), *torch.autograd.grad(out, (query, key, value), weight.to(kind))]

    for found, expected in zip(run(dtype), run(torch.float64), strict=True):
        assert (found.double() - expected).norm() < bound * expected.norm()


def test_16_bit_follows_float32(batch):
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model()
        model.to(dtype)  # type: ignore[arg-type]  # transformers narrows it
        use_varlen_attention(model)
        losses = PretrainingModule(model)(batch)
        found[dtype] = (losses.mlm, losses.nsp, gradients(model, losses.mlm + losses.nsp))
    narrow, wide = found[torch.bfloat16], found[torch.float32]
    torch.testing.assert_close(narrow[:2], wide[:2], rtol=2e-2, atol=0)
    for name, gradient in wide[2].items():
        if not name.endswith(("attention.self.key.bias", "seq_relationship.bias")):  # nearly 0
            assert (narrow[2][name].float() - gradient).norm() < 0.1 * gradient.norm(), name


class TestTokenLoss:
    """The loss of the decoder against cross_entropy of its logits, in chunks that do not divide the rows."""

    @pytest.fixture(autouse=True)
    def small_chunks(self, monkeypatch):
        monkeypatch.setattr("pretrain.token_loss.CHUNK_BYTES", 4 * 11 * 3)

    def test_its_gradient_is_that_of_cross_entropy(self):
        torch.manual_seed(0)
        hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
        labels = torch.tensor([0, 10, 3, 3, 7, 1, 2])
        decoder = TokenDecoder(5, 11).double()
        found = []
        for loss in (
            lambda: decoder(hidden, labels).loss,
            lambda: cross_entropy(decoder(hidden), labels, reduction="sum"),
        ):
            value = loss()
            found.append([value.detach(), *torch.autograd.grad(2.5 * value, (hidden, decoder.weight, decoder.bias))])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

    def test_its_gradient_in_16_bit_is_scaled_by_a_number_in_32(self):
        decoder, labels = TokenDecoder(5, 11).bfloat16(), torch.tensor([0, 10, 3, 3, 7, 1, 2])
        loss = decoder(torch.randn(7, 5).bfloat16(), labels).loss
        whole, third = (torch.autograd.grad(loss / n, decoder.weight, retain_graph=True)[0] for n in (1, 3))
        assert torch.equal(third, (whole.float() / 3).bfloat16())

    def test_no_masked_tokens_have_no_loss(self):
        decoder, hidden = TokenDecoder(5, 11), torch.zeros(0, 5, requires_grad=True)
        found = decoder(hidden, torch.zeros(0, dtype=torch.int64))
        [gradient] = torch.autograd.grad(found.loss, decoder.weight)
        assert (found.loss, found.correct, gradient.abs().max()) == (0, 0, 0)

    def test_it_counts_what_is_right(self):
        decoder, labels = TokenDecoder(5, 11), torch.tensor([4, 2, 4, 4, 0, 1, 4])
        with torch.no_grad():
            decoder.bias[4] = 1e4
        assert decoder(torch.randn(7, 5), labels).correct == 4

    def test_large_logits_and_nan_are_what_they_are(self):
        decoder, hidden = TokenDecoder(5, 11), torch.randn(7, 5)
        labels = torch.zeros(7, dtype=torch.int64)
        for scale in (1e4, torch.nan):
            found, expected = (
                decoder(hidden * scale, labels).loss,
                cross_entropy(decoder(hidden * scale), labels, reduction="sum"),
            )
            torch.testing.assert_close(found, expected, equal_nan=True)

    def test_where_no_gradient_is_asked_for_none_is_made(self, monkeypatch):
        monkeypatch.setattr("pretrain.token_loss._SummedLoss.apply", None)  # it makes gradients in its forward pass
        decoder, labels = TokenDecoder(5, 11), torch.zeros(7, dtype=torch.int64)
        with torch.no_grad():
            assert decoder(torch.randn(7, 5), labels).loss > 0

    def test_no_matrix_of_logits_is_kept(self):
        kept: list[int] = []
        decoder, labels = TokenDecoder(5, 11), torch.zeros(7, dtype=torch.int64)
        hidden = torch.randn(7, 5, requires_grad=True)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            decoder(hidden, labels)
        assert sorted(kept) == [11, 7 * 5, 11 * 5]


def test_checkpointed_activations_change_nothing_but_what_is_kept(batch):
    kept: dict[bool, int] = {}
    found = {}
    for recompute in (False, True):
        model = tiny_model()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
        use_varlen_attention(model)
        torch.manual_seed(5)
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = PretrainingModule(model, checkpoint_activations=recompute).train()(batch)
        kept[recompute] = sum(sizes)
        found[recompute] = (losses.mlm, losses.nsp, gradients(model, losses.mlm + losses.nsp))
    assert kept[True] < kept[False] / 2
    assert found[True][:2] == found[False][:2]
    for name, gradient in found[False][2].items():
        assert torch.equal(gradient, found[True][2][name]), name


def test_accuracy_counts(batch):
    model = tiny_model()
    use_varlen_attention(model)
    answer = int(batch.mlm_labels.mode().values)
    with torch.no_grad():  # always the same answers
        model.cls.seq_relationship.bias.copy_(torch.tensor([-1e4, 1e4]))
        model.cls.predictions.bias[answer] = 1e4
    losses = PretrainingModule(model)(batch)
    assert losses.nsp_correct == (batch.nsp_labels == 1).sum()
    assert losses.mlm_correct == (batch.mlm_labels == answer).sum() > 0


def test_vocabulary_padding_changes_neither_loss_nor_gradients(batch, tmp_path):
    tiny_model().save_pretrained(tmp_path / "hf")
    padded = build_model(init_from=tmp_path / "hf", vocab_size=VOCAB, dropout=0.0, seed=0, needs_nsp=True)
    assert padded.config.vocab_size % VOCAB_MULTIPLE == 0 < padded.config.vocab_size - VOCAB
    plain = tiny_model()
    expected = padded_losses(plain, batch)
    losses = PretrainingModule(padded)(batch)
    torch.testing.assert_close(losses.mlm, expected[0], rtol=1e-5, atol=0)
    found = gradients(padded, losses.mlm + losses.nsp)
    gradients(plain, expected[0] + expected[1])
    embedding = found["bert.embeddings.word_embeddings.weight"]
    assert not embedding[VOCAB:].any()
    assert not found["cls.predictions.bias"][VOCAB:].any()
    torch.testing.assert_close(
        embedding[:VOCAB], plain.bert.embeddings.word_embeddings.weight.grad, rtol=1e-4, atol=1e-5
    )
    assert (padded.cls.predictions.bias[VOCAB:] == PADDING_BIAS).all()


def test_weights_are_a_function_of_the_seed():
    first, again, other = (
        build_model(preset="bert-tiny", vocab_size=VOCAB, dropout=0.1, seed=seed, needs_nsp=True).state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(first[name], other[name])


def test_biases_and_layer_norms_do_not_decay():
    model = tiny_model()
    decay, plain = parameter_groups(model, 0.1)
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim == 2 for parameter in decay["params"])
    assert all(parameter.ndim == 1 for parameter in plain["params"])
    assert len(decay["params"]) + len(plain["params"]) == len(list(model.parameters()))


class TestInitFrom:
    """Continuing a Hugging Face folder."""

    def test_a_missing_head_is_said_and_initialised(self, tmp_path, capsys):
        from transformers import BertForMaskedLM

        full = tiny_model()
        masked = BertForMaskedLM(full.config)
        masked.load_state_dict(full.state_dict(), strict=False)
        masked.save_pretrained(tmp_path)
        model = build_model(init_from=tmp_path, vocab_size=VOCAB, dropout=0.0, seed=0, needs_nsp=True)
        assert "no next-sentence head" in capsys.readouterr().err
        torch.testing.assert_close(
            model.cls.predictions.transform.dense.weight, full.cls.predictions.transform.dense.weight
        )
        build_model(init_from=tmp_path, vocab_size=VOCAB, dropout=0.0, seed=0, needs_nsp=False)
        assert "next-sentence" not in capsys.readouterr().err

    def test_an_encoder_with_a_hole_is_refused(self, tmp_path):
        from safetensors.torch import load_file, save_file

        tiny_model().save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights["bert.encoder.layer.1.output.dense.weight"]
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(InputError, match=r"layer\.1\.output\.dense\.weight"):
            build_model(init_from=tmp_path, vocab_size=VOCAB, dropout=0.0, seed=0, needs_nsp=True)

    def test_another_vocabulary_is_refused(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        with pytest.raises(InputError, match="90 vocabulary entries, the store 100"):
            build_model(init_from=tmp_path, vocab_size=100, dropout=0.0, seed=0, needs_nsp=True)

    def test_pickled_weights_are_not_read(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
        with pytest.raises(InputError, match="pickled"):
            build_model(init_from=tmp_path, vocab_size=VOCAB, dropout=0.0, seed=0, needs_nsp=True)

    def test_another_kind_of_model_is_refused(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        config = (tmp_path / "config.json").read_text()
        (tmp_path / "config.json").write_text(config.replace('"model_type": "bert"', '"model_type": "roberta"'))
        with pytest.raises(InputError, match="roberta"):
            build_model(init_from=tmp_path, vocab_size=VOCAB, dropout=0.0, seed=0, needs_nsp=True)


def test_the_padding_entry_is_the_tokenizer_s():
    model = build_model(preset="bert-tiny", vocab_size=VOCAB, dropout=0.0, seed=0, needs_nsp=True, pad_id=7)
    weight = model.bert.embeddings.word_embeddings.weight
    assert not weight[7].any(), "the embedding of padding is 0"
    assert weight[0].any()
    model.bert.embeddings.word_embeddings(torch.tensor([0, 7])).sum().backward()
    assert weight.grad is not None
    assert (weight.grad[0] == 1).all()
    assert not weight.grad[7].any()
    assert model.config.pad_token_id == 7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch's own, of the compiler
def test_compiled_layers_change_nothing(batch, monkeypatch):
    """As graphs, forward and backward; what makes machine code of them is torch's, and tests/test_gpu.py's."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(compiled, backend="aot_eager"))
    plain, fused = tiny_model(), tiny_model()
    for model in (plain, fused):
        use_varlen_attention(model)
    compile_layers(fused)
    expected, found = PretrainingModule(plain)(batch), PretrainingModule(fused)(batch)
    assert any(hasattr(layer, "_compiled_call_impl") for layer in fused.bert.encoder.layer)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    expected_gradients = gradients(plain, expected.mlm + expected.nsp)
    for name, gradient in gradients(fused, found.mlm + found.nsp).items():
        if not name.endswith("attention.self.key.bias"):
            difference = (gradient - expected_gradients[name]).norm() / expected_gradients[name].norm()
            assert difference < 1e-5, name
