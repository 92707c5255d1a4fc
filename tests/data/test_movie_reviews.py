"""The default data and model as a user first meets them: rows, splits, tokens, batches."""

import numpy as np
import pytest
import torch

from ffalora.data import load_data, prepare


@pytest.fixture(scope="module")
def reviews(movie_reviews_folder):
    return load_data("movie-reviews")


@pytest.fixture(scope="module")
def tokenizer(minilm_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm_folder)


def test_rows_are_those_of_the_published_file(reviews):
    assert {role: len(rows) for role, rows in reviews.splits.items()} == {
        "train": 8058,
        "validation": 1007,
        "test": 1007,
    }
    labels = np.concatenate([np.asarray(rows["label"]) for rows in reviews.splits.values()])
    assert np.bincount(labels).tolist() == [5076, 4996]
    assert all(abs(rating) >= 0.5 for rating in reviews.train["rating"])
    assert reviews.label_names == ["negative", "positive"]


def test_no_text_is_in_two_splits(reviews):
    texts = [set(rows["text"]) for rows in reviews.splits.values()]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])


def test_splits_do_not_move_with_the_seed_of_a_run(movie_reviews_folder, reviews):
    other = load_data("movie-reviews", seed=5, max_samples=300)
    assert other.splits["test"]["text"] == reviews.splits["test"]["text"]
    assert len(other.train) == 300
    moved = load_data("movie-reviews", split_seed=1)
    assert set(moved.splits["test"]["text"]) != set(reviews.splits["test"]["text"])


def test_batch_is_what_the_tokenizer_itself_would_pad(reviews, tokenizer):
    examples = prepare(reviews, "validation", tokenizer, max_length=24)
    rows = [3, 500, 77, 3]
    inputs, targets = examples.collate(rows)
    texts = [reviews.splits["validation"]["text"][row] for row in rows]
    expected = tokenizer(texts, truncation=True, max_length=24, padding=True, return_tensors="pt")
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    assert targets.tolist() == [reviews.splits["validation"]["label"][row] for row in rows]


def test_lengths_are_the_tokens_of_each_sample(reviews, tokenizer):
    examples = prepare(reviews, "test", tokenizer)
    inputs, _ = examples.collate(np.arange(len(examples)))
    assert np.array_equal(inputs["attention_mask"].sum(1).numpy(), examples.lengths)
    assert 26 < examples.lengths.mean() < 28


def test_domains_are_natural_clients_and_documents_stay_whole(movie_reviews_folder):
    data = load_data("sentiment-domains")
    assert data.client_column == "domain"
    rows = [domain for part in data.splits.values() for domain in part["domain"]]
    counts = {domain: rows.count(domain) for domain in set(rows)}
    assert counts == {"movie-reviews": 10072, "tweets": 3432, "product-reviews": 2985, "editorials": 2970}
    assert not set(data.train["document"]) & set(data.splits["test"]["document"])


def test_ratings_are_regression_targets_of_all_sentences(movie_reviews_folder, tokenizer):
    data = load_data("movie-ratings")
    assert data.num_labels == 1 and sum(map(len, data.splits.values())) == 10605
    _, targets = prepare(data, "test", tokenizer).collate([0, 1])
    assert targets.dtype == torch.float32
    assert targets.tolist() == pytest.approx(data.splits["test"]["rating"][:2])
