"""The embedded SmolLM2-135M-Instruct learns conversations privately at two sites, and answers."""

import json

import pytest

from ffalora.config import from_mapping
from ffalora.federated.simulate import simulate
from ffalora.runs.generate import generate

NAMES = ("Ada", "Ben", "Cleo", "Dan")


def conversation(number: int) -> dict:
    first, second = 2 + number % 7, 2 + number * 3 % 8
    asked = f"{NAMES[number % 4]} has {first} apples and buys {second} more. How many?"
    said = f"{first} + {second} = {first + second}. #### {first + second}"
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


@pytest.mark.slow
def test_conversations_of_two_sites_are_learned_privately(asset_folder, tmp_path) -> None:
    pytest.importorskip("gguf")
    asset_folder("SmolLM2-135M-Instruct")
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(json.dumps(conversation(number)) for number in range(56)))
    changes = {
        "data": {"name": str(path), "task": "causal-lm", "answer_tokens": 20, "max_evaluation_samples": 6},
        "model": {"name": "SmolLM2-135M-Instruct"},
        "adapter": {"target_modules": ["q_proj", "v_proj"], "rank": 8},
        "clients": {"count": 2},
        "federation": {"rounds": 2, "local_steps": 2, "evaluate_every": 1},
        "optimizer": {"lr": 0.5, "batch_size": 8},
        "privacy": {"unit": "sample", "target_epsilon": 8, "max_grad_norm": 1.0, "noise": "seeded"},
    }
    result = simulate(from_mapping(changes), tmp_path / "run", progress=False)
    first, last = (row["metrics"] for row in (result.rounds[0], result.rounds[-1]))
    assert last["perplexity"] < first["perplexity"] < 20
    question = conversation(5)["messages"][0]["content"]
    answers = [generate(tmp_path / "run", [question], max_new_tokens=12, merge=merge)[0] for merge in (True, False)]
    assert all(any(character.isdigit() for character in answer) for answer in answers)
