"""Whatever a model returns (a tensor, several, an output of transformers), losses read it and samples stay apart."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering

from ffalora.adapters import AdapterConfig, attach
from ffalora.training.gradients import segment_gradients
from ffalora.training.independence import SamplesNotIndependent


def _spans():
    """A model that answers questions by where answers start and end, and a batch."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16,
    )  # fmt: skip
    inputs = {"input_ids": torch.randint(1, 60, (4, 7)), "attention_mask": torch.ones(4, 7).long()}
    return BertForQuestionAnswering(config).eval(), inputs, torch.randint(0, 7, (4, 2))


def _of_spans(outputs, targets):
    found = zip((outputs.start_logits, outputs.end_logits), targets.unbind(1), strict=True)
    return sum(F.cross_entropy(logits, target, reduction="none") for logits, target in found) / 2


def test_gradients_of_answers_by_start_and_end_are_those_of_each_sample_alone():
    model, inputs, targets = _spans()
    adapters = attach(model, AdapterConfig(rank=2))
    found = segment_gradients(model, adapters, _of_spans, inputs, targets)
    own = [each for layer in adapters.trained_layers() for each in layer.trained().values()]
    for row in range(4):
        loss = _of_spans(
            model(**{name: value[row : row + 1] for name, value in inputs.items()}), targets[row : row + 1]
        )
        alone = torch.cat([each.flatten() for each in torch.autograd.grad(loss.sum(), own)])
        torch.testing.assert_close(found.gradients[row, : len(alone)], alone, rtol=1e-4, atol=1e-6)


def test_a_loss_of_starts_and_ends_that_compares_samples_is_refused():
    model, inputs, targets = _spans()
    adapters = attach(model, AdapterConfig(rank=2))

    def compared(outputs, targets):
        own = _of_spans(outputs, targets)
        return own - own.mean()

    with pytest.raises(SamplesNotIndependent, match="averages over the batch or compares samples"):
        segment_gradients(model, adapters, compared, inputs, targets)


class _Returns(nn.Module):
    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.form, self.inner, self.outer = form, nn.Linear(4, 4), nn.Linear(4, 2)
        self.requires_grad_(False)

    def forward(self, x):
        hidden = torch.relu(self.inner(x))
        return self.form(self.outer(hidden), hidden)


_FORMS = {
    "tensor": (lambda logits, hidden: logits, lambda outputs: outputs),
    "tuple": (lambda logits, hidden: (logits, hidden), lambda outputs: outputs[0]),
    "mapping": (lambda logits, hidden: {"scores": logits}, lambda outputs: outputs["scores"]),
    "object": (lambda logits, hidden: SimpleNamespace(logits=logits), lambda outputs: outputs.logits),
}


@pytest.mark.parametrize("name", _FORMS)
def test_losses_are_given_what_the_model_returns(name):
    form, read = _FORMS[name]
    model, x, targets = _Returns(form), torch.randn(3, 4), torch.tensor([0, 1, 0])
    adapters = attach(model, AdapterConfig(rank=2, target_modules=["inner"]))

    def losses(outputs, targets):
        return F.cross_entropy(read(outputs), targets, reduction="none")

    found = segment_gradients(model, adapters, losses, {"x": x}, targets)
    torch.testing.assert_close(found.losses, losses(model(x), targets))

    def averaged(outputs, targets):
        own = losses(outputs, targets)
        return own + 0.1 * own.mean()

    with pytest.raises(SamplesNotIndependent):
        segment_gradients(model, adapters, averaged, {"x": x}, targets)


def test_an_output_without_a_tensor_of_samples_is_refused():
    model = _Returns(lambda logits, hidden: logits.sum())
    adapters = attach(model, AdapterConfig(rank=2, target_modules=["inner"]))
    with pytest.raises(ValueError, match="no tensor of numbers that leads with the 3 samples"):
        segment_gradients(model, adapters, lambda outputs, targets: targets, {"x": torch.randn(3, 4)}, torch.zeros(3))
