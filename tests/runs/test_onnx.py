"""Merged classifiers as ONNX files: another runtime gives the same probabilities; what cannot be is refused before."""

import pytest
import torch
from test_export import TEXTS

from ffalora.config import ConfigError
from ffalora.federated.simulate import simulate
from ffalora.runs import onnx_file
from ffalora.runs.bundle import load_bundle, predict
from ffalora.runs.export import export


def trained(small, folder, pooling):
    asked = {"model__pooling": pooling, "model__head_start": "random", "adapter__head": "trained"}
    simulate(small(federation__rounds=1, optimizer__lr=40.0, **asked), folder, progress=False)
    return folder


@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_onnxruntime_gives_the_same_probabilities_for_any_number_of_texts(pooling, small, tmp_path):
    for name in (*onnx_file.NEEDS, "onnxruntime"):
        pytest.importorskip(name)
    import onnxruntime

    run = trained(small, tmp_path / "run", pooling)
    made = export(run, tmp_path / "shared", merged=True, onnx=True)
    session = onnxruntime.InferenceSession(str(made.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    assert tuple(each.name for each in session.get_inputs()) == made.onnx_inputs
    tokenizer = load_bundle(run).loaded.tokenizer
    for texts in (TEXTS, TEXTS[:1], TEXTS[5:7]):
        inputs = dict(tokenizer(texts, padding=True, return_tensors="np"))
        theirs = torch.from_numpy(session.run(["logits"], inputs)[0]).softmax(-1)
        ours = torch.tensor([list(answer["probabilities"].values()) for answer in predict(run, texts)])
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    card = (made.folder / "README.md").read_text()
    assert all(f"`{name}`" in card for name in made.onnx_inputs) and "`model.onnx`" in card


def test_an_adapter_alone_and_missing_libraries_and_other_tasks_are_refused_before_anything_is_written(
    small, tmp_path, monkeypatch
):
    run = trained(small, tmp_path / "run", "mean")
    with pytest.raises(ConfigError, match="onnx is a format of whole models: export the merged model"):
        export(run, tmp_path / "shared", onnx=True)
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs onnx and onnxscript; pip install 'ffalora\[onnx\]'"):
        export(run, tmp_path / "shared", merged=True, onnx=True)
    with pytest.raises(ConfigError, match="this adapter was trained for causal-lm"):
        onnx_file.check_onnx("causal-lm")
    assert not (tmp_path / "shared").exists()
