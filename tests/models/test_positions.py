"""How long a sequence a model can read: what it says, tried on the model itself."""

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel

from ffalora.models import MeanPooledClassifier, max_positions

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
GPT2 = {"vocab_size": 40, "n_positions": 20, "n_embd": 16, "n_layer": 1, "n_head": 2}
OPT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 24}
LIMIT = {"max_position_embeddings": 20}
CASES = {
    "bert": (SIZES | LIMIT, 20),
    "roberta": (SIZES | LIMIT, 18),
    "xlm-roberta": (SIZES | LIMIT, 18),
    "camembert": (SIZES | LIMIT, 18),
    "mpnet": (SIZES | LIMIT, 18),
    "gpt2": (GPT2, 20),
    "opt": (OPT | LIMIT | {"word_embed_proj_dim": 16}, 20),
}


def model_of(kind):
    config, limit = CASES[kind]
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(kind, **config)).eval(), limit


@pytest.mark.parametrize("kind", CASES)
@torch.inference_mode()
def test_a_sequence_of_all_positions_is_read_and_a_longer_one_is_not(kind) -> None:
    model, limit = model_of(kind)
    assert max_positions(model) == limit
    ids = torch.full((1, limit + 1), 5)
    assert model(ids[:, :limit]).last_hidden_state.shape == (1, limit, 16)
    with pytest.raises((IndexError, RuntimeError)):
        model(ids)


def test_a_pooled_classifier_reads_as_much_as_its_encoder_and_others_say_no_limit() -> None:
    assert max_positions(MeanPooledClassifier(model_of("roberta")[0], 2, 0.1, 1.0, 0)) == 18
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    assert max_positions(transformers.MambaModel(transformers.MambaConfig(**sizes))) is None
    assert max_positions(torch.nn.Linear(2, 2)) is None
