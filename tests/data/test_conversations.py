"""Conversations, prompts with answers and plain texts as a language model learns them; bad ones refused in words."""

import json

import pytest
import torch

from ffalora.data import DataError, load_data
from ffalora.data.conversations import encode_conversation, encode_question
from ffalora.data.examples import IGNORE_INDEX
from ffalora.data.tokenize import prepare

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ROLELESS = "{% for m in messages %}{{ m['content'] }}<end>{% endfor %}"
FORGETFUL = (
    "{{ messages[-1]['role'] }}{{ messages[-1]['content'] }}<end>{% if add_generation_prompt %}<assistant>{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SYSTEM = {"role": "system", "content": "be brief"}
TURNS = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "and 3?"},
    {"role": "assistant", "content": "seven"},
]


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes as tokens, an end token, and a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(["<end>", *alphabet])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<end>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", chat_template=TEMPLATE)


def with_template(tokenizer, template):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def written(path, rows) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def conversations(tmp_path, rows, **options):
    path = written(tmp_path / "chat.jsonl", [{"messages": row} for row in rows])
    return load_data(path, task="causal-lm", **{"fractions": (1, 0, 0)} | options)


def learned(examples, tokenizer, row=0):
    _, targets = examples.collate([row])
    return tokenizer.decode(targets[targets != IGNORE_INDEX])


def test_every_answer_of_a_conversation_is_learned_and_nothing_else(tmp_path, tokenizer) -> None:
    data = conversations(tmp_path, [[SYSTEM, *TURNS], TURNS[:2]])
    assert data.input_columns == ("messages",)
    examples = prepare(data, "train", tokenizer)
    first = int(examples.lengths.argmax())
    assert learned(examples, tokenizer, first) == "four<end>seven<end>"
    assert learned(examples, tokenizer, 1 - first) == "four<end>"
    inputs, targets = examples.collate([first, 1 - first])
    whole = tokenizer.apply_chat_template([SYSTEM, *TURNS], tokenize=False)
    assert tokenizer.decode(inputs["input_ids"][0]) == whole
    own = targets != IGNORE_INDEX
    assert torch.equal(targets[own], inputs["input_ids"][own])


def test_a_question_is_tokenised_as_it_was_learned(tokenizer) -> None:
    ids, own = encode_conversation(TURNS, tokenizer)
    assert encode_question(TURNS[:1], tokenizer) == ids[: own.index(1)]
    second = len(own) - own[::-1].index(1) - len("seven<end>") + len("<end>") - 1
    assert encode_question(TURNS[:3], tokenizer) == ids[:second]
    assert tokenizer.decode(encode_question([SYSTEM, TURNS[0]], tokenizer)).endswith("<user>2+2?<end>\n<assistant>")


def test_a_later_question_is_whole_where_the_template_rewrites_earlier_answers(tokenizer) -> None:
    """As templates of reasoning models do: what an assistant thought is left out of what was said before."""
    forgets = with_template(
        tokenizer,
        "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' and not loop.last %}"
        "{{ m['content'].split('|')[-1] }}{% else %}{{ m['content'] }}{% endif %}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
    )
    turns = [TURNS[0], {"role": "assistant", "content": "hm, two and two|four"}, TURNS[2]]
    asked = tokenizer.decode(encode_question(turns, forgets))
    assert asked == "<user>2+2?<end>\n<assistant>four<end>\n<user>and 3?<end>\n<assistant>"
    ids, own = encode_conversation(turns[:2], forgets)
    assert encode_question(turns[:1], forgets) == ids[: own.index(1)]


def test_plain_texts_are_learned_whole_and_cut_at_the_end(tmp_path, tokenizer) -> None:
    path = written(tmp_path / "texts.jsonl", [{"text": "abcdef"}, {"text": "xy"}])
    data = load_data(path, task="causal-lm", fractions=(1, 0, 0))
    examples = prepare(data, "train", tokenizer, max_length=5)
    found = {learned(examples, tokenizer, row) for row in range(2)}
    assert data.input_columns == ("text",) and found == {"abcde", "xy<end>"}


def test_prompts_with_completions_are_found_by_their_names(tmp_path, tokenizer) -> None:
    path = written(tmp_path / "pairs.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}])
    data = load_data(path, task="causal-lm", fractions=(1, 0, 0))
    assert data.input_columns == ("prompt", "completion")
    assert {learned(prepare(data, "train", tokenizer), tokenizer, row) for row in range(2)} == {"b<end>", "d<end>"}


@pytest.mark.parametrize(
    "messages,message",
    [
        ([{"role": "narrator", "content": "x"}, TURNS[1]], r"role 'narrator' is none of system, user, assistant"),
        ([{"role": "user", "content": None}, TURNS[1]], r"content of a message must be text"),
        (TURNS[:3], r"(?s)no answer of an assistant.* in 1 of 3 rows: line 2 of chat.jsonl.*drop_empty"),
        ([TURNS[0], {"role": "assistant", "content": "  "}], r"an empty one\) is empty in 1 of 3 rows: line 2"),
        ([], r"no answer of an assistant"),
    ],
)
def test_a_conversation_that_cannot_be_learned_is_refused_by_its_row(tmp_path, messages, message) -> None:
    with pytest.raises(DataError, match=message):
        conversations(tmp_path, [TURNS, messages, TURNS])


@pytest.mark.parametrize(
    "odd,message",
    [
        ("hello", r"input_columns='messages' holds .* no list of messages; mend or remove line 2 of chat.jsonl"),
        ({"role": "user", "content": "x"}, r"no list of messages; mend or remove line 2 of chat.jsonl"),
        ([{"role": "user", "content": ["x"]}, TURNS[1]], r"message must be text, but is list; mend or remove line 2"),
    ],
)
def test_conversations_beside_something_else_are_not_learned_as_text(tmp_path, odd, message) -> None:
    """One odd value makes texts of a whole JSON column."""
    with pytest.raises(DataError, match=message):
        conversations(tmp_path, [TURNS, odd, TURNS[:2]])


@pytest.mark.parametrize("write", [json.dumps, list, lambda turns: json.dumps({"messages": turns})])
def test_conversations_that_a_table_holds_as_text_are_refused(tmp_path, write) -> None:
    import pandas

    path = tmp_path / "chat.csv"
    pandas.DataFrame({"text": [write(TURNS), write(TURNS[:2])]}).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"conversations written as text; .*JSON lines or Parquet: so in lines 2, 3"):
        load_data(str(path), task="causal-lm", fractions=(1, 0, 0))
    texts = written(tmp_path / "texts.jsonl", [{"text": "[1] a list"}, {"text": "[]"}, {"text": json.dumps(TURNS)}])
    assert load_data(texts, task="causal-lm", fractions=(1, 0, 0)).form == "texts"  # one text among others is a text


def test_conversations_without_an_answer_are_left_out_where_that_is_asked_for(tmp_path) -> None:
    data = conversations(tmp_path, [TURNS, TURNS[:1], TURNS[:2]], drop_empty=True)
    assert len(data.train) == 2


def test_a_conversation_that_does_not_fit_is_refused_and_not_cut(tmp_path, tokenizer) -> None:
    data = conversations(tmp_path, [TURNS[:1], TURNS[:2], TURNS], drop_empty=True)
    length = len(encode_conversation(TURNS, tokenizer)[0])
    with pytest.raises(
        DataError,
        match=rf"1 of 2 conversations have more than max_length=30 .*: line 3 of .* raise max_length to {length}",
    ):
        prepare(data, "train", tokenizer, max_length=30)
    assert prepare(data, "train", tokenizer, max_length=length).lengths.max() == length


@pytest.mark.parametrize(
    "template,message",
    [
        (None, "no chat template, which conversations need"),
        (ROLELESS, "writes users and assistants alike"),
        (FORGETFUL, "rewrites what was said before message 2"),
        (STRICT, "line 1 of chat.jsonl.* roles must alternate"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_in_words(tmp_path, tokenizer, template, message) -> None:
    data = conversations(tmp_path, [[SYSTEM, *TURNS], [SYSTEM, *TURNS]])
    with pytest.raises(DataError, match=message):
        prepare(data, "train", with_template(tokenizer, template))


def test_a_tokenizer_without_an_end_is_refused(tmp_path, tokenizer) -> None:
    other = with_template(tokenizer, TEMPLATE)
    other.eos_token = None
    with pytest.raises(DataError, match=r"no end-of-sequence token, .* with eos_token set"):
        prepare(conversations(tmp_path, [TURNS, TURNS]), "train", other)
