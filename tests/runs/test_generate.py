"""Language models trained on conversations, prompts or texts answer as they were trained, alone, in a batch, merged."""

import io
import json
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from small_runs import WORDS, save_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ffalora.cli import main
from ffalora.config import ConfigError, load_config
from ffalora.data.conversations import encode_question
from ffalora.data.errors import DataError
from ffalora.data.examples import IGNORE_INDEX
from ffalora.data.generation import exact_match, generate_answers, put, rouge_l
from ffalora.data.places import Places
from ffalora.data.tasks import find_task
from ffalora.data.tokenize import encode_prompts, tokenize_causal
from ffalora.federated.experiment import build
from ffalora.federated.simulate import simulate
from ffalora.report import read_runs, write_report
from ffalora.runs.answers import Answered
from ffalora.runs.bundle import evaluate, load_bundle, predict
from ffalora.runs.data import load_run_data, prepare_split
from ffalora.runs.evaluation import gather_examples
from ffalora.runs.folder import ANSWERS
from ffalora.runs.generate import chat, generate, read_prompts
from ffalora.runs.tables import predict_file

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def words(rng, count):
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), count))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """Folder of a tiny causal language model with a chat template."""
    folder = tmp_path_factory.mktemp("llama")
    save_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token, tokenizer.chat_template = "[SEP]", TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.3, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(language_model, small, tmp_path_factory):
    """A finished run of each form of data, by its name."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    pairs = [(text := words(rng, 3), text.split()[0]) for _ in range(60)]
    rows = {
        "conversations": [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs
        ],
        "prompts": [{"prompt": q, "completion": a} for q, a in pairs],
        "texts": [{"text": f"{q} {a}"} for q, a in pairs],
    }
    found = {}
    for form, data in rows.items():
        path = folder / f"{form}.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in data))
        config = small(
            data__name=str(path), data__task="causal-lm", model__name=str(language_model), federation__rounds=2,
            adapter__target_modules="all-linear", optimizer__lr=0.5,
            **({} if form == "texts" else {"data__answer_tokens": 2, "data__max_evaluation_samples": 4}),
        )  # fmt: skip
        simulate(config, folder / form, progress=False)
        found[form] = folder / form
    return found


@pytest.mark.parametrize("form", ["conversations", "prompts", "texts"])
def test_a_run_answers_in_the_form_that_it_was_trained_on(runs, form) -> None:
    assert load_bundle(runs[form]).form == form
    prompts = [f"{WORDS[1]} {WORDS[2]}", WORDS[3], f"{WORDS[4]} {WORDS[5]} {WORDS[6]} {WORDS[7]}"]
    together = generate(runs[form], prompts, max_new_tokens=5, merge=False)
    assert together == [generate(runs[form], [prompt], max_new_tokens=5, merge=False)[0] for prompt in prompts]
    assert together == generate(runs[form], prompts, max_new_tokens=5, merge=True, batch_size=2)
    others = {"conversations", "prompts", "texts"} - {form}
    assert any(generate(runs[form], prompts, max_new_tokens=5, form=other) != together for other in others)


def test_the_adapter_takes_part_in_an_answer(runs) -> None:
    prompts = [f"{WORDS[i]} {WORDS[i + 1]}" for i in range(20)]
    answers = generate(runs["texts"], prompts, max_new_tokens=4)
    bundle = load_bundle(runs["texts"])
    from ffalora.data.generation import generate_answers

    with bundle.adapters.disabled():
        untrained = generate_answers(
            bundle.loaded.model, bundle.loaded.tokenizer, prompts, template="{prompt}", max_new_tokens=4
        )
    assert answers != untrained


def test_draws_are_those_of_their_seed(runs) -> None:
    asked = {"prompts": [WORDS[0]] * 3, "max_new_tokens": 8, "temperature": 2.0}
    first, again, other = (generate(runs["prompts"], **asked, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_answers_of_conversations_are_compared_with_the_last_one(runs, tmp_path) -> None:
    path, wanted = tmp_path / "choices.jsonl", ["word1", "word2", "word1", "word1"]
    asked = [[{"role": "user", "content": f"word{i} word{i + 1}"}] for i in range(4)]
    rows = [[*turns, {"role": "assistant", "content": said}] for turns, said in zip(asked, wanted, strict=True)]
    path.write_text("\n".join(json.dumps({"messages": messages}) for messages in rows))
    scores = evaluate(runs["conversations"], {"data.name": str(path)})
    answers = generate(runs["conversations"], asked, max_new_tokens=2)
    assert scores["rouge_l"] == rouge_l(answers, wanted)
    assert scores["exact_match"] == exact_match(answers, wanted)


def test_numbers_are_compared_only_where_answers_end_in_them(runs, tmp_path) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"messages": [{"role": "user", "content": "so"}, {"role": "assistant", "content": said}]})
            for said in ("yes", "no")
        )
    )
    scores = evaluate(runs["conversations"], {"data.name": str(path)})
    assert "rouge_l" in scores and "exact_match" not in scores


def test_perplexity_of_each_site_is_that_of_its_rows_alone(runs, tmp_path, capsys) -> None:
    rng = np.random.default_rng(5)
    rows = [{"text": words(rng, 3 + i % 4), "site": "north" if i % 3 else "south"} for i in range(9)]

    def scores(name: str, chosen: list[dict]):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in chosen))
        return evaluate(runs["texts"], {"data.name": str(path)}, by="site")

    found = scores("both", rows)
    assert list(found.by_group) == ["north", "south"]
    for site, metrics in found.by_group.items():
        alone = scores(site, [row for row in rows if row["site"] == site])
        assert metrics == pytest.approx({"rows": alone.samples, **alone}) and metrics["perplexity"] != pytest.approx(
            found["perplexity"]
        )
    with pytest.raises(SystemExit):
        main(["evaluate", str(runs["texts"]), "--data.name", str(tmp_path / "both.jsonl"), "--by", "site"])
    said = capsys.readouterr()
    assert f"{found.by_group['north']['perplexity']:.4f}" in said.out, said.err
    with pytest.raises(DataError, match=r"by='ward': .* its columns are text, site"):
        evaluate(runs["texts"], {"data.name": str(tmp_path / "both.jsonl")}, by="ward")


@pytest.mark.parametrize(
    "form,options,error,message",
    [
        ("prompts", {"prompts": []}, ConfigError, "a prompt is empty, or there are none"),
        ("prompts", {"prompts": ["a", " "]}, ConfigError, "a prompt is empty"),
        ("prompts", {"temperature": -1.0}, ConfigError, "temperature=-1.0 must be 0 or more"),
        ("prompts", {"system": "be brief"}, ConfigError, "system is given, but this run's prompts are prompts"),
        ("conversations", {"prompts": [[{"role": "user", "content": "x"}] * 0]}, ConfigError, "a prompt is empty"),
        (
            "conversations",
            {"prompts": ["a", [{"role": "robot", "content": "x"}]]},
            DataError,
            "prompt 1: the role",
        ),
        (
            "prompts",
            {"prompts": [[{"role": "user", "text": "x"}]]},
            DataError,
            "prompt 0: the content of",
        ),
        (
            "conversations",
            {"prompts": [[{"role": "user", "content": "word1 " * 70}]]},
            DataError,
            "prompt 0: a conversation of 7\\d tokens leaves no room for an answer in the 64 positions",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(runs, form, options, error, message) -> None:
    with pytest.raises(error, match=message):
        generate(runs[form], **{"prompts": ["a"]} | options)


def test_prompts_are_read_from_lines_or_objects(tmp_path) -> None:
    lines, objects = tmp_path / "asked.txt", tmp_path / "asked.jsonl"
    lines.write_text("one\n\ntwo words\n")
    assert read_prompts(lines) == ["one", "two words"]
    question = {"role": "user", "content": "q"}
    rows = [{"prompt": "p"}, {"messages": [question, {"role": "assistant", "content": "a"}]}]
    objects.write_text("\n".join(json.dumps(row) for row in rows))
    assert read_prompts(objects) == ["p", [question]]
    objects.write_bytes(b"\xef\xbb\xbf" + '{"prompt": "one\u2028two"}\r\n'.encode())
    assert read_prompts(objects) == ["one\u2028two"]
    objects.write_text('{"prompt": "p"}\n{"text": "q"}')
    with pytest.raises(DataError, match="line 2: no JSON object with prompt or messages"):
        read_prompts(objects)
    objects.write_text('{"prompt": 5}\n')
    with pytest.raises(DataError, match=r"line 1: a prompt is a text or a conversation; .*there is int"):
        read_prompts(objects)
    objects.write_text('{"messages": [{"role": "robot", "content": "q"}]}')
    with pytest.raises(DataError, match=r"line 1: .*the role 'robot' is none of system, user, assistant"):
        read_prompts(objects)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_prompts_are_read_in_the_encodings_of_tables(tmp_path, encoding) -> None:
    lines = tmp_path / "asked.txt"
    lines.write_bytes("größer\r\nkleiner – so\r\n".encode(encoding))
    assert read_prompts(lines) == ["größer", "kleiner – so"]
    lines.write_bytes(b"\x81\x8d")
    with pytest.raises(DataError, match=r"asked.txt cannot be read as text: its bytes are neither UTF-8 nor Windows"):
        read_prompts(lines)


def test_line_separators_inside_a_prompt_and_byte_order_marks_do_not_part_or_change_prompts(tmp_path) -> None:
    lines, objects = tmp_path / "asked.txt", tmp_path / "asked.jsonl"
    lines.write_text("one\u2028more\ntwo\n", encoding="utf-8-sig")
    assert read_prompts(lines) == ["one\u2028more", "two"]
    objects.write_text('{"prompt": "one\u2028more\x85"}\r\n{"prompt": "two"}\r\n', encoding="utf-8-sig")
    assert read_prompts(objects) == ["one\u2028more\x85", "two"]


def test_the_system_speaks_first_in_conversations_that_do_not_begin_so_themselves() -> None:
    tokenizer = SimpleNamespace(chat_template="given", apply_chat_template=lambda said, **_: str(said))
    question, own = {"role": "user", "content": "q"}, {"role": "system", "content": "own"}
    asked, _ = put(["q", [question], [own, question]], "conversations", tokenizer, "be brief")
    first = {"role": "system", "content": "be brief"}
    assert asked == [[first, question], [first, question], [own, question]]


def test_the_verb_prints_what_the_function_answers(runs, tmp_path, capsys) -> None:
    def run(*arguments) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["generate", *map(str, arguments)])
        return ended.value.code

    folder, prompts = runs["conversations"], [WORDS[1], WORDS[2]]
    expected = generate(folder, prompts, max_new_tokens=3)
    capsys.readouterr()
    assert run(folder, *prompts, "--max-new-tokens", 3, "--json") == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said == [{"prompt": p, "answer": a} for p, a in zip(prompts, expected, strict=True)]
    (tmp_path / "asked.txt").write_text("\n".join(prompts))
    assert run(folder, "--file", tmp_path / "asked.txt", "--max-new-tokens", 3) == 0
    assert f"> {prompts[1]}\n{expected[1]}\n" in capsys.readouterr().out
    assert run(folder, prompts[0], "--file", tmp_path / "asked.txt") == 2


def test_conversations_longer_than_the_model_has_positions_are_refused(language_model, small, tmp_path) -> None:
    rng, roles = np.random.default_rng(0), ("user", "assistant")
    said = [(words(rng, 90 if row % 8 == 3 else 3), "yes") for row in range(40)]
    rows = [[{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)] for turns in said]
    (tmp_path / "long.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    asked = {"data__name": str(tmp_path / "long.jsonl"), "data__task": "causal-lm", "model__name": str(language_model)}
    with pytest.raises(
        DataError, match=r"data\.max_length=200: \d rows of the .* 64 positions .*data\.max_length to 64"
    ):
        build(small(**asked, data__max_length=200))
    with pytest.raises(DataError, match=r"more than data\.max_length=64 tokens.*lines? \d+.* of long.jsonl"):
        build(small(**asked, data__max_length=64))


def test_a_prompt_is_cut_at_generation_as_it_was_in_training(runs) -> None:
    """Prompts longer than the samples of training lose their front, an answer's room is kept free of them, and
    beside a long conversation an answer is as long as there is room for.
    """
    bundle, long = load_bundle(runs["prompts"]), " ".join(WORDS[i % len(WORDS)] for i in range(90))
    model, tokenizer = bundle.loaded.model, bundle.loaded.tokenizer
    (whole,) = encode_prompts([long], tokenizer)
    seen = []
    model.register_forward_pre_hook(lambda _, args, named: seen.append(named["input_ids"]), with_kwargs=True)
    answer = "word1 word2 word3 word4"
    rows = datasets.Dataset.from_dict({"prompt": [long], "answer": [answer]})
    learned = tokenize_causal(rows, ["prompt", "answer"], tokenizer, 20, Places())
    inputs, targets = learned.collate([0])
    asked_in_training = inputs["input_ids"][0][: int((targets[0] != IGNORE_INDEX).int().argmax())]
    with pytest.warns(UserWarning, match="1 of 2 prompts have more than 15 tokens and lose their front"):
        generate_answers(model, tokenizer, [long, "word1"], max_length=20, max_new_tokens=5)  # with the end
    assert seen[0][1].tolist() == asked_in_training.tolist() == whole[-15:]
    seen.clear()
    with pytest.warns(UserWarning, match="more than 60 tokens"):
        generate_answers(model, tokenizer, [long], positions=64, max_new_tokens=4)
    assert seen[0][0].tolist() == whole[-60:]
    talk = [{"role": "user", "content": "word1 " * 59}]
    asked = encode_question(talk, tokenizer)
    assert 60 < len(asked) < 64
    made = []
    model.register_forward_hook(lambda *_: made.append(1))
    generate_answers(model, tokenizer, [talk], positions=64, max_new_tokens=10)
    assert len(made) <= 64 - len(asked)
    with pytest.warns(UserWarning, match="lose their front"):
        assert generate(runs["prompts"], [long], max_new_tokens=3) == generate_answers(
            model, tokenizer, [long], max_length=bundle.config.data.max_length, positions=64, max_new_tokens=3
        )
    seen.clear()
    with pytest.warns(UserWarning, match="more than 32 tokens"):
        generate_answers(model, tokenizer, [long], positions=64, max_new_tokens=128)
    assert seen[0][0].tolist() == whole[-32:]


def test_a_chat_goes_on_beyond_the_positions_without_its_oldest_turns(runs, caplog) -> None:
    reply = chat(runs["conversations"], system=WORDS[5], max_new_tokens=8)
    for turn in range(12):
        reply(f"{WORDS[turn]} {WORDS[turn + 1]} {WORDS[turn + 2]}")
    assert "oldest" in caplog.text
    with pytest.raises(DataError, match="leaves no room for an answer in the 64 positions"):
        reply("word1 " * 70)
    assert isinstance(reply(WORDS[1]), str)  # what could not be answered was not said


def test_what_a_checkpoint_would_do_to_probabilities_is_left_out_but_its_ends_are_kept(runs) -> None:
    bundle = load_bundle(runs["texts"])
    model, tokenizer = bundle.loaded.model, bundle.loaded.tokenizer
    asked = {"prompts": [f"{WORDS[i]} {WORDS[i + 1]}" for i in range(8)], "template": "{prompt}", "max_new_tokens": 8}
    plain = generate_answers(model, tokenizer, **asked)
    drawn = generate_answers(model, tokenizer, **asked, temperature=2.0)
    own = model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.top_k, own.top_p, own.do_sample = 50.0, 1, 1, 0.01, True
    assert generate_answers(model, tokenizer, **asked) == plain
    assert generate_answers(model, tokenizer, **asked, temperature=2.0) == drawn
    assert model.generation_config is own
    first = tokenizer.convert_tokens_to_ids(plain[0].split()[0])
    own.eos_token_id = [tokenizer.eos_token_id, first]
    assert generate_answers(model, tokenizer, **asked)[0].split() == plain[0].split()[:1]


def test_a_chat_answers_with_all_that_was_said_before_in_view(runs, capsys, monkeypatch) -> None:
    folder = runs["conversations"]
    said = [{"role": "system", "content": WORDS[5]}]
    for question in (WORDS[1], WORDS[2]):
        said.append({"role": "user", "content": question})
        said.append({"role": "assistant", "content": generate(folder, [said], max_new_tokens=3)[0]})
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{WORDS[1]}\n{WORDS[2]}\n\nno more\n"))
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(folder), "--chat", "--system", WORDS[5], "--max-new-tokens", "3"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines() == [said[2]["content"], said[4]["content"]]
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(folder), "--chat", "--form", "texts"])
    assert ended.value.code == 2 and "--chat is a conversation" in capsys.readouterr().err


def test_a_run_compares_itself_with_the_untrained_model_and_shows_what_both_answer(runs, small, tmp_path) -> None:
    """Perplexity and answers before training are those of the model with its adapters at zero; on the page both stand
    side by side.
    """
    config = load_config(runs["prompts"] / "config.yaml", {"baselines": True, "federation.rounds": 1})
    simulate(config, tmp_path / "run", progress=False)
    before, after = (json.loads((tmp_path / "run" / name).read_text()) for name in ("answers-untrained.json", ANSWERS))
    row = json.loads((tmp_path / "run/baselines.json").read_text())[0]
    assert row["name"] == "untrained" and len(before) == len(after) == 4
    assert [one["prompt"] for one in before] == [one["prompt"] for one in after]
    bundle = load_bundle(tmp_path / "run")
    prompts = [one["prompt"] for one in before]
    with bundle.adapters.disabled():
        answers = generate_answers(bundle.loaded.model, bundle.loaded.tokenizer, prompts, max_new_tokens=2)
        plain = evaluate_untrained(bundle)
    assert answers == [one["answer"] for one in before]
    assert row["metrics"]["perplexity"] == pytest.approx(plain, rel=1e-5)
    assert row["metrics"]["rouge_l"] == pytest.approx(rouge_l(answers, [one["reference"] for one in before]))
    page = (write_report(read_runs([tmp_path / "run"]), tmp_path / "run")).read_text()
    assert "Before and after" in page and "answer of the data" in page
    assert all(one["prompt"] in page for one in before)


def evaluate_untrained(bundle) -> float:
    data = load_run_data(bundle.config)
    examples = prepare_split(bundle.config, data, "test", bundle.loaded)
    task = find_task("causal-lm")
    return task.metrics(gather_examples(bundle.loaded.model, examples, task, bundle.device, 4))["perplexity"]


def test_questions_and_answers_of_protected_data_are_not_written_down(runs, tmp_path) -> None:
    protected = {"privacy": {"unit": "sample", "noise_multiplier": 1.0, "noise": "secure"}, "baselines": True}
    config = load_config(runs["prompts"] / "config.yaml", protected | {"federation.rounds": 1})
    simulate(config, tmp_path / "run", progress=False)
    assert not list((tmp_path / "run").glob("answers*.json"))
    assert "metrics" in json.loads((tmp_path / "run/baselines.json").read_text())[0]


@pytest.mark.parametrize("form", ["conversations", "prompts", "texts"])
def test_predict_answers_for_language_models_as_generate_does(runs, form, tmp_path, capsys) -> None:
    prompts = [f"{WORDS[1]} {WORDS[2]}", WORDS[3]]
    answers = generate(runs[form], prompts, max_new_tokens=128 if form == "texts" else 2)
    assert predict(runs[form], prompts) == [{"answer": answer} for answer in answers]
    lines = [{"prompt": prompts[0], "id": 1}, {"prompt": "", "id": 2}, {"prompt": prompts[1], "id": 3}]
    file = tmp_path / "asked.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    found = predict_file(runs[form], file, tmp_path / "answered.jsonl")
    rows = [json.loads(line) for line in found.file.read_text().splitlines()]
    assert (found.rows, found.skipped) == (2, 1)
    assert [row["predicted"] for row in rows] == [answers[0], None, answers[1]]
    with pytest.raises(SystemExit) as done:
        main(["predict", str(runs[form]), prompts[1]])
    assert done.value.code in (0, None) and capsys.readouterr().out == f"{answers[1]}\n"


def test_conversations_of_a_table_are_answered_without_their_own_last_answer(runs, tmp_path) -> None:
    asked = {"role": "user", "content": WORDS[3]}
    told = [{"messages": [asked]}, {"messages": [asked, {"role": "assistant", "content": WORDS[9]}]}]
    file = tmp_path / "asked.jsonl"
    file.write_text("\n".join(map(json.dumps, told)))
    predict_file(runs["conversations"], file, tmp_path / "answered.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "answered.jsonl").read_text().splitlines()]
    assert rows[0]["predicted"] == rows[1]["predicted"] == predict(runs["conversations"], [WORDS[3]])[0]["answer"]


def test_what_is_no_conversation_in_a_table_is_named_by_its_line(runs, tmp_path) -> None:
    good, bad = {"role": "user", "content": WORDS[3]}, {"role": "robot", "content": WORDS[3]}
    file = tmp_path / "asked.jsonl"
    file.write_text("\n".join(json.dumps({"messages": [message]}) for message in (good, bad)))
    with pytest.raises(DataError, match=r"column 'messages', line 2 of asked.jsonl: the role 'robot' is none of"):
        predict_file(runs["conversations"], file, tmp_path / "answered.jsonl")
    assert not (tmp_path / "answered.jsonl").exists()


def test_pairs_and_tables_without_prompts_are_refused_for_language_models(runs, tmp_path) -> None:
    with pytest.raises(ConfigError, match="answers single prompts"):
        predict(runs["prompts"], [("one", "two")])
    (tmp_path / "a.csv").write_text("id,about\n1,x\n2,y\n")
    with pytest.raises(DataError, match="no column of prompts; name it prompt or question"):
        predict_file(runs["prompts"], tmp_path / "a.csv", tmp_path / "b.csv")


def test_a_choice_of_few_answers_is_beside_the_commonest_and_free_answers_are_not():
    few = Answered(list("abcd"), ["Yes!", "no", "it depends", "no"], ["Yes.", "Yes.", "Yes.", "No."])
    assert few.metrics()["exact_match"] == 0.5 and few.metrics_of_commonest()["exact_match"] == 0.75
    free = Answered(["a", "b"], ["one", "two"], ["one", "three"])
    assert "exact_match" not in free.metrics() and free.metrics_of_commonest() is None
