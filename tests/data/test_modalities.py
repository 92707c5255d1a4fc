"""Examples of every modality share one interface: lengths, labels, and batches padded to their own longest row."""

import numpy as np
import pytest
import torch

from ffalora.data import DataError, LoadedData, TokenizedDataset, prepare
from ffalora.data.examples import IGNORE_INDEX, ImageDataset, Ragged
from ffalora.data.generation import generate_answers
from ffalora.data.load import load_data

ADD = [{"question": f"{a} plus {b}?", "answer": f"It is\n#### {a + b}"} for a in range(6) for b in range(a + 1)]


@pytest.fixture(scope="module")
def byte_tokenizer():
    """A byte-level tokenizer made in memory, with an end token and no padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest.fixture(scope="module")
def sums():
    from datasets import Dataset

    return LoadedData("sums", "causal-lm", {"train": Dataset.from_list(ADD)}, ("question", "answer"), None)


def test_ragged_rows_come_back_as_they_went_in():
    rows = [[5, 6], [], [7], [8, 9, 10]]
    ragged = Ragged(rows)
    assert [ragged[row].tolist() for row in range(4)] == rows
    padded, mask = ragged.padded(np.array([3, 1, 0]), value=-1)
    assert padded.tolist() == [[8, 9, 10], [-1, -1, -1], [5, 6, -1]]
    assert np.array_equal(mask, padded != -1)


def test_empty_batch_has_no_rows_and_keeps_its_types():
    examples = TokenizedDataset(Ragged([[1, 2], [3]]), np.array([0, 1]), pad_token_id=0)
    inputs, targets = examples.collate([])
    assert inputs["input_ids"].shape == (0, 0) and inputs["input_ids"].dtype == torch.int64
    assert targets.shape == (0,)


def test_padding_shows_only_in_the_mask_not_in_the_token_number():
    examples = TokenizedDataset(Ragged([[0, 2, 0], [3]]), np.array([0, 1]), pad_token_id=0)
    inputs, _ = examples.collate([0, 1])
    assert inputs["input_ids"].shape == (2, 3)
    assert inputs["attention_mask"].sum(1).tolist() == [3, 1]


def test_pairs_carry_the_segment_of_each_token(minilm_folder):
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder)
    rows = Dataset.from_dict({"a": ["is it?", "why so"], "b": ["yes it is indeed", "no"], "label": [1, 0]})
    data = LoadedData("pairs", "classification", {"test": rows}, ("a", "b"), "label", ["no", "yes"])
    inputs, _ = prepare(data, "test", tokenizer).collate([1, 0])
    expected = tokenizer(["why so", "is it?"], ["no", "yes it is indeed"], padding=True, return_tensors="pt")
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    assert inputs["token_type_ids"].any()


def test_held_out_images_are_the_same_ones_in_every_run(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as Picture

    random = np.random.default_rng(0)
    pictures = [Picture.fromarray(random.integers(0, 255, (6, 5 + i % 3, 3)).astype(np.uint8)) for i in range(60)]
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    rows = Dataset.from_dict({"image": pictures, "label": [i % 2 for i in range(60)]}, features=features)
    rows.add_column("id", list(range(60))).save_to_disk(str(tmp_path / "images"))
    first, again = (load_data(str(tmp_path / "images"), task="image-classification") for _ in range(2))
    assert [first.test["id"][:], first.validation["id"][:]] == [again.test["id"][:], again.validation["id"][:]]
    assert prepare(first, "test", image_size=8, patch_size=4, channels=3).pixels.shape == (6, 3, 8, 8)


def test_causal_targets_are_the_answer_and_its_end_only(sums, byte_tokenizer):
    examples = prepare(sums, "train", byte_tokenizer)
    inputs, targets = examples.collate([4, 0])
    for row, source in enumerate([ADD[4], ADD[0]]):
        own = targets[row] != IGNORE_INDEX
        assert byte_tokenizer.decode(targets[row][own]) == source["answer"] + "<end>"
        ids = inputs["input_ids"][row][inputs["attention_mask"][row] == 1]
        assert byte_tokenizer.decode(ids) == f"{source['question']}\n{source['answer']}<end>"
        assert torch.equal(targets[row][own], inputs["input_ids"][row][own])
    assert examples.lengths[[4, 0]].tolist() == inputs["attention_mask"].sum(1).tolist()


def test_long_prompt_loses_its_front_and_never_its_answer(sums, byte_tokenizer):
    full, cut = (prepare(sums, "train", byte_tokenizer, max_length=length) for length in (None, 16))
    (_, whole), (_, short) = full.collate([3]), cut.collate([3])
    assert cut.lengths.max() == 16
    assert torch.equal(whole[whole != IGNORE_INDEX], short[short != IGNORE_INDEX])


def test_a_long_prompt_keeps_the_token_that_begins_every_sequence(sums, byte_tokenizer):
    from copy import deepcopy

    from tokenizers.processors import TemplateProcessing

    tokenizer = deepcopy(byte_tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", tokenizer.bos_token_id)]
    )
    examples = prepare(sums, "train", tokenizer, max_length=20)
    ids = examples.collate([0])[0]["input_ids"][0]
    assert tokenizer.decode(ids) == "<begin>us 0?\nIt is\n#### 0<end>"  # "0 pl" had no room
    assert examples.lengths.max() == 20


def test_answer_that_leaves_no_room_for_a_prompt_is_refused(sums, byte_tokenizer):
    with pytest.raises(DataError, match=r"'answer', row 0 .*: the answer alone has 13 tokens.* max_length=12"):
        prepare(sums, "train", byte_tokenizer, max_length=12)


def test_braces_in_a_prompt_are_text(byte_tokenizer):
    from ffalora.data.tokenize import encode_prompts

    assert byte_tokenizer.decode(encode_prompts(["{x} {prompt}"], byte_tokenizer, "<{prompt}>")[0]) == "<{x} {prompt}>"
    with pytest.raises(DataError, match="must contain"):
        encode_prompts(["x"], byte_tokenizer, "no place")


def test_generation_in_a_batch_equals_generation_one_by_one(byte_tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(byte_tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    prompts = ["a", "a much longer prompt than that", "two words"]
    together = generate_answers(model, byte_tokenizer, prompts, max_new_tokens=6)
    alone = [generate_answers(model, byte_tokenizer, [prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert together == alone and any(together)


def test_image_values_are_scaled_and_cost_their_patches():
    pixels = np.stack([np.zeros((1, 8, 8), np.uint8), np.full((1, 8, 8), 255, np.uint8)])
    examples = ImageDataset(pixels, np.array([3, 1]), tokens=5)
    inputs, targets = examples.collate([1, 0])
    assert inputs["pixel_values"].shape == (2, 1, 8, 8) and inputs["pixel_values"].dtype == torch.float32
    assert inputs["pixel_values"].flatten(1).unique(dim=1).flatten().tolist() == [1.0, -1.0]
    assert targets.tolist() == [1, 3] and examples.lengths.tolist() == [5, 5]


@pytest.mark.parametrize(("size", "channels", "shape"), [(None, 1, (1, 8, 12)), (16, 3, (3, 16, 16))])
def test_images_of_arrays_and_files_become_one_shape(size, channels, shape):
    from datasets import Dataset
    from PIL import Image

    grey = np.arange(96, dtype=np.uint8).reshape(8, 12)
    for column in ([grey, grey], [Image.fromarray(grey), Image.fromarray(grey)]):
        rows = Dataset.from_dict({"image": column, "label": [0, 1]})
        data = LoadedData("pictures", "image-classification", {"train": rows}, ("image",), "label", ["a", "b"])
        examples = prepare(data, "train", image_size=size, channels=channels)
        assert examples.pixels.shape == (2, *shape)
        if size is None:
            assert np.array_equal(examples.pixels[0, 0], grey)
        assert examples.lengths[0] == (shape[1] // 4) * (shape[2] // 4) + 1


def test_images_that_do_not_fit_are_refused():
    from datasets import Dataset

    rows = Dataset.from_dict({"image": [np.zeros((8, 10), np.uint8)] * 2, "label": [0, 1]})
    data = LoadedData("pictures", "image-classification", {"train": rows}, ("image",), "label", ["a", "b"])
    with pytest.raises(DataError, match="patch_size=4 does not divide images of 8 x 10"):
        prepare(data, "train")
    with pytest.raises(DataError, match="channels=2"):
        prepare(data, "train", channels=2)


def test_missing_split_and_missing_tokenizer_are_named(sums):
    with pytest.raises(DataError, match="split='test': sums has the splits train"):
        prepare(sums, "test")
    with pytest.raises(DataError, match="tokenizer is missing"):
        prepare(sums, "train")
