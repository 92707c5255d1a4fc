"""A tiny causal language model, its tokenizer with a chat template, and texts: for tests of TRL's trainers."""

import torch
from small_runs import WORDS, save_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

LORA = dict(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }} [SEP] "
    "{% endgeneration %}{% else %}{{ m['content'] }} [SEP] {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def load_tokenizer(folder):
    save_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token, tokenizer.chat_template = "[SEP]", TEMPLATE
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def language_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=44, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64, initializer_range=0.3, pad_token_id=0, bos_token_id=2, eos_token_id=3,
        )
    )  # fmt: skip


def text(row, count):
    return " ".join(WORDS[(7 * row + i) % len(WORDS)] for i in range(count))


def made_factors(make, drawn_before):
    """``a`` of the adapters that a trainer makes of a plain model, when so many numbers were drawn before."""
    net = language_model()
    torch.rand(drawn_before)
    made = make(net).model
    return torch.cat([p.flatten() for name, p in made.named_parameters() if "lora_A" in name])
