"""Opacus scripts work on our layers: its per-sample gradients are ours, and its engine trains them."""

from contextlib import nullcontext

import peft
import pytest
import torch
from adapter_cases import adapted, relative_error, run_pass, text_batch, tiny_bert
from opacus import GradSampleModule, PrivacyEngine
from opacus.validators import ModuleValidator

from ffalora.adapters import AdapterConfig, attach, convert


class Losses(torch.nn.Module):
    """Per-sample losses of a classifier, as a module that Opacus can wrap."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, labels):
        return torch.nn.functional.cross_entropy(self.model(input_ids=ids).logits, labels, reduction="none")


def per_sample(module, batch):
    """Opacus's ``grad_sample`` by parameter; it records in training mode only, so the model's own dropout is zero."""
    for part in module.train().modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    wrapped = GradSampleModule(Losses(module), loss_reduction="sum", strict=False)
    wrapped(batch["input_ids"], batch["labels"]).sum().backward()
    return {n.removeprefix("_module.model."): p.grad_sample for n, p in wrapped.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("trained", ["b", "both"])
@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_opacus_sees_the_gradients_that_the_arena_holds(trained, head):
    adapters, batch = adapted(tiny_bert(), trained=trained, head=head), text_batch()

    def losses():
        return Losses(adapters.model)(batch["input_ids"], batch["labels"])

    _, arena, _ = run_pass(adapters, losses, 5)
    samples = per_sample(adapters.model, batch)
    for place in adapters.layout.places:
        mine = arena[:, place.start : place.start + place.size]
        name = f"{place.layer}.{'base_layer.' if place.layer in adapters.heads else ''}{place.tensor}"
        assert relative_error(samples[name].flatten(1), mine) < 1e-5


def test_opacus_on_peft_and_on_our_adapter_agree(tmp_path):
    adapters, batch = adapted(tiny_bert()), text_batch()
    adapters.save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_bert(), tmp_path, is_trainable=True).eval()
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    ours, rival = per_sample(adapters.model, batch), per_sample(theirs, batch)
    for name, layer in adapters.layers.items():
        other = rival[f"base_model.model.{name}.lora_B.default.weight"]
        assert relative_error(ours[f"{name}.lora_B"], other) < 1e-5
        assert layer.lora_B.grad_sample.shape == (5, 16, 3)


def test_opacus_sees_float32_gradients_of_a_float32_pass_inside_autocast():
    (model, plain), x = (torch.nn.Sequential(torch.nn.Linear(6, 4)) for _ in range(2)), torch.randn(5, 3, 6)
    plain.load_state_dict(model.state_dict())
    found = []
    for one, inside in ((model, True), (plain, False)):
        adapted(one, target_modules=["0"], trained="both")
        outputs = GradSampleModule(one.train(), loss_reduction="sum", strict=False)(x)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            outputs.square().sum().backward()
        found.append({n: p.grad_sample for n, p in one.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys() == {"0.lora_A", "0.lora_B"}
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_opacus_s_engine_trains_the_adapter_and_counts():
    model = tiny_bert()
    adapters = attach(model, AdapterConfig(rank=3))
    module = Losses(model).train()
    assert not ModuleValidator.validate(module, strict=False)
    batch = text_batch(samples=12)
    data = torch.utils.data.TensorDataset(batch["input_ids"], batch["labels"])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    engine = PrivacyEngine(accountant="rdp")
    module, optimizer, loader = engine.make_private(
        module=module, optimizer=optimizer, data_loader=torch.utils.data.DataLoader(data, batch_size=4),
        noise_multiplier=1.0, max_grad_norm=1.0, loss_reduction="sum",
    )  # fmt: skip
    before = adapters.state()
    for ids, labels in loader:
        optimizer.zero_grad()
        if len(ids):
            module(ids, labels).sum().backward()
            optimizer.step()
    assert (adapters.state() != before).all()
    assert engine.get_epsilon(1e-5) > 0


def test_dropout_is_refused_where_opacus_cannot_know_the_mask():
    adapters, batch = adapted(tiny_bert(), dropout=0.1), text_batch()
    with pytest.raises(NotImplementedError, match="dropout"):
        per_sample(adapters.model, batch)


def test_a_converted_peft_model_gives_opacus_no_silent_zeros():
    model = peft.get_peft_model(tiny_bert(), peft.LoraConfig(r=2, target_modules=["query"]))
    convert(model)
    samples = per_sample(model, text_batch())
    assert all(value is None for value in samples.values())


@pytest.mark.parametrize("state, remedy", [("merged", "call unmerge"), ("disabled", "leave disabled")])
def test_an_adapter_that_takes_no_part_in_the_output_is_refused(state, remedy):
    adapters, batch = adapted(tiny_bert()), text_batch()
    adapters.model.enable_input_require_grads()  # so that a layer without an adapter has a gradient, too
    if state == "merged":
        adapters.merge()
    with adapters.disabled() if state == "disabled" else nullcontext():
        with pytest.raises(RuntimeError, match=rf"attention\.self\.\w+ has an adapter that does not train.*{remedy}"):
            per_sample(adapters.model, batch)
