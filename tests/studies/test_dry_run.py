"""The paper's scale, tried without its models and data: what a real run would be refused for is refused here."""

from dataclasses import replace

import datasets
import huggingface_hub
import pytest
from click.testing import CliRunner

from ffalora.cli.study import command
from ffalora.config import ConfigError
from ffalora.config.values import differences
from ffalora.runs.data import load_run_data
from ffalora.studies.architectures import full_size
from ffalora.studies.dry_run import _apart, dry_run, on_stand_ins, rehearsals
from ffalora.studies.grid import load_grid
from ffalora.studies.requirements import check_requirements
from ffalora.studies.stand_ins import write_data
from ffalora.studies.study import load_study, study_names, tier_names

LORA, FFA, NORMS = [0.01, 0.02, 0.05, 0.1], [0.1, 0.2, 0.5, 1], [2, 5, 10]
GLUE = ["paper-sst2", "paper-mnli", "paper-qqp", "paper-qnli"]


def cut(grid, methods, conditions):
    """The grid with these methods and conditions only."""
    return replace(grid, methods=methods, conditions={name: grid.conditions[name] for name in conditions})


def config_of(study, base, method, condition, scale="paper"):
    grid = load_grid(study, scale, "verdict", base=base)
    return grid.config(grid.tuning_cells((method, condition))[0])


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """Folder of stand-ins; what ``datasets`` converts stays beside it."""
    folder = tmp_path_factory.mktemp("stand-ins")
    with _apart(folder / "cache"):
        yield folder


@pytest.mark.long
@pytest.mark.parametrize(
    ("study", "scale", "base", "methods", "conditions"),
    [
        ("heterogeneity", "paper", "paper-mnli", ["fedprox"], ["severe"]),
        ("heterogeneity", "paper", "paper-food101", ["lora"], ["severe"]),
        ("privacy", "paper", "paper-gsm8k", ["ffa"], ["no-dp", "eps-1"]),
        ("alpha", "paper", "paper-qqp", ["ffa"], ["fixed-32"]),
        ("cost", "laptop", None, ["fedex"], ["all-linear"]),
    ],
)
def test_cells_that_cannot_run_are_found_without_their_model_and_data(study, scale, base, methods, conditions):
    cache = datasets.config.HF_DATASETS_CACHE
    grid = cut(load_grid(study, scale, "verdict", base=base), methods, conditions)
    checked = dry_run(grid)
    assert checked.cells == len(checked.sizes) == len(methods) * len(conditions)
    assert (base or scale) in checked.to_text() and f"{checked.cells} cells" in checked.to_text()
    assert f"{5 * checked.cells} or more to report" in checked.to_text()
    assert datasets.config.HF_DATASETS_CACHE == cache


@pytest.mark.parametrize(
    ("study", "base", "lora"),
    [("privacy", base, 786_432) for base in GLUE] + [("privacy", "paper-gsm8k", 4_194_304)],
)
def test_a_client_trains_and_sends_the_numbers_that_the_paper_counts(study, base, lora):
    for method, wanted in (("lora", lora), ("ffa", lora // 2)):
        size = full_size(config_of(study, base, method, "eps-6"), labels=2)
        assert (size.trained, size.bytes_up) == (wanted, 4 * wanted)


@pytest.mark.parametrize("base", GLUE)
def test_the_protocol_of_the_paper_is_what_is_run(base):
    grid = load_grid("privacy", "paper", "verdict", base=base)
    assert {m: v["optimizer.lr"] for m, v in grid.first_tried.items()} == {"lora": LORA, "ffa": FFA}
    for condition, epsilon in (("eps-6", 6), ("eps-3", 3), ("eps-1", 1)):
        config = config_of("privacy", base, "ffa", condition)
        assert (config.privacy.target_epsilon, config.privacy.delta, config.privacy.unit) == (epsilon, 1e-5, "sample")
    cells = grid.tuning_cells(("lora", "eps-6"))
    assert {grid.config(cell).privacy.max_grad_norm for cell in cells} == set(NORMS)
    assert len(cells) == 3 * len(LORA) * len(NORMS) and len(grid.tuning_cells(("lora", "no-dp"))) == 3 * len(LORA)
    assert (config.model.name, config.adapter.rank, config.adapter.head) == ("FacebookAI/roberta-large", 8, "frozen")
    federation, optimizer = config.federation, config.optimizer
    assert (federation.rounds, federation.local_steps, optimizer.batch_size, optimizer.name) == (1000, 10, 200, "sgd")
    columns = {len(row) for row in config.clients.proportions}
    assert columns == {3 if base == "paper-mnli" else 2} and len(config.clients.proportions) == 3


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_every_cell_of_every_study_and_base_has_a_configuration(scale):
    for name in study_names():
        for base in [None, *load_study(name).scales[scale].other_bases]:
            for size in ("smoke", "verdict"):
                grid = load_grid(name, scale, size, base=base)
                for cell in grid.verdict_cells(grid.first_chosen())[: len(grid.places())]:
                    grid.config(cell)


def test_trying_a_whole_scale_covers_all_cells_and_bases():
    grids = list(rehearsals("paper"))
    own = {g.name: g for g in grids if g.size == "verdict"}
    assert set(own) == set(study_names())
    for name, grid in own.items():
        assert list(grid.methods) == list(load_study(name).methods) and list(grid.conditions) == list(
            grid.study.conditions
        )
    bases = {base for name in study_names() for base in load_study(name).scales["paper"].other_bases}
    assert bases <= {g.study.scales["paper"].base for g in grids}
    assert {g.study.metric for g in grids if g.study.scales["paper"].base == "paper-gsm8k"} == {"exact_match"}


@pytest.mark.parametrize("base", [*GLUE, "paper-gsm8k", "paper-food101"])
def test_a_stand_in_changes_names_and_sizes_alone(stand_ins, base):
    config = config_of("privacy", base, "ffa", "eps-6")
    changed = {
        line.partition(" was ")[0]
        for line in differences(config.model_dump(), on_stand_ins(config, stand_ins).model_dump())
    }
    allowed = {"device", "model.name", "data.name", "federation.rounds", "federation.local_steps"}
    assert changed <= allowed | {"optimizer.batch_size", "data.max_evaluation_samples", "data.answer_tokens"}


@pytest.mark.parametrize("base", GLUE)
def test_the_reported_split_of_glue_is_the_one_whose_labels_are_public(stand_ins, base):
    config = config_of("privacy", base, "ffa", "eps-6")
    task = config.data.name.rpartition(":")[2]
    data = load_run_data(on_stand_ins(config, stand_ins))
    wanted = "validation_matched" if task == "mnli" else "validation"
    public = datasets.load_dataset(write_data(config, stand_ins).rpartition(":")[0], task)
    assert public["test_matched" if task == "mnli" else "test"]["label"][:] == [-1] * 40
    column = config.data.text[-1]
    assert sorted(data.test[column]) == sorted(public[wanted][column])
    rows = sorted([*data.train[column], *data.validation[column]])
    assert rows == sorted(public["train"][column]) and 0 < len(data.validation) < len(data.train)
    assert data.label_names == public["train"].features["label"].names
    assert list(data.input_columns) == config.data.text


@pytest.mark.parametrize(
    ("base", "split", "column"), [("paper-gsm8k", "test", "answer"), ("paper-food101", "validation", "label")]
)
def test_the_reported_split_of_answers_and_images_is_the_one_that_is_published(stand_ins, base, split, column):
    config = config_of("privacy", base, "ffa", "eps-6")
    repository, _, part = write_data(config, stand_ins).rpartition(":")
    public = datasets.load_dataset(repository, part)
    data = load_run_data(on_stand_ins(config, stand_ins))
    assert sorted(data.test[column]) == sorted(public[split][column])
    assert len(data.train) + len(data.validation) == len(public["train"])
    assert data.num_labels == (101 if base == "paper-food101" else 1)


def test_the_mismatched_half_of_mnli_can_be_evaluated(stand_ins):
    grid = load_grid("privacy", "paper", "verdict", {"data.splits": {"test": "validation_mismatched"}}, "paper-mnli")
    config = grid.config(grid.tuning_cells(("ffa", "eps-6"))[0])
    assert config.data.splits == {"train": "train", "test": "validation_mismatched"}
    public = datasets.load_dataset(write_data(config, stand_ins).rpartition(":")[0], "mnli")
    data = load_run_data(on_stand_ins(config, stand_ins))
    assert sorted(data.test["premise"]) == sorted(public["validation_mismatched"]["premise"])


def test_a_cell_without_the_metric_that_is_compared_is_refused():
    grid = load_grid("privacy", "paper", "verdict")
    study = grid.study.model_copy(update={"metric": "exact_match"})
    with pytest.raises(ConfigError, match=r"privacy: ffa, no-dp reports no exact_match"):
        dry_run(cut(replace(grid, study=study), ["ffa"], ["no-dp"]))


def test_a_value_that_no_model_takes_is_refused():
    grid = load_grid("init", "paper", "verdict", {"adapter.target_modules": ["qurey"]})
    with pytest.raises(ValueError, match=r"no linear layer is called 'qurey'; near matches: query"):
        dry_run(cut(grid, ["ffa"], ["kaiming"]))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.name", "owner/unknown", r"model\.name='owner/unknown'.*FacebookAI/roberta-large"),
        ("data.name", "owner/unknown", r"data\.name='owner/unknown'.*nyu-mll/glue"),
    ],
)
def test_a_model_or_data_without_a_stand_in_is_refused_by_name(key, value, message):
    with pytest.raises(ConfigError, match=message):
        dry_run(cut(load_grid("rank", "paper", "verdict", {key: value}), ["ffa"], ["rank-2"]))


def test_a_study_is_refused_where_model_data_or_gpu_are_missing(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "nowhere")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        check_requirements(load_grid("privacy", "paper", "smoke"))
    text = str(caught.value)
    assert "no CUDA device" in text and "--device cpu" in text and "--dry-run" in text
    assert "hf download FacebookAI/roberta-large" in text and "hf download nyu-mll/glue --repo-type dataset" in text


def test_a_study_starts_where_everything_is_there(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    local = {"model.name": str(tmp_path), "data.name": str(tmp_path)}
    check_requirements(load_grid("privacy", "paper", "smoke", local))
    check_requirements(load_grid("privacy", "laptop", "smoke"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    check_requirements(load_grid("privacy", "paper", "smoke", local | {"device": "cpu"}))


def test_what_a_study_needs_is_checked_before_its_first_run(monkeypatch, tmp_path):
    def refuse(grid):
        raise ConfigError(f"{grid.study.scales['paper'].base} is not there")

    monkeypatch.setattr("ffalora.studies.requirements.check_requirements", refuse)
    arguments = ["rank", "--scale", "paper", "--base", "paper-qnli", "--output", str(tmp_path / "study")]
    found = CliRunner().invoke(command, arguments)
    assert "paper-qnli is not there" in str(found.exception) and not (tmp_path / "study").exists()


def test_what_the_last_of_several_studies_needs_is_checked_before_the_first_of_them_runs(monkeypatch, tmp_path):
    def refuse(grid):
        if grid.name == tier_names("A")[-1]:
            raise ConfigError(f"{grid.name} cannot be run")

    begun = []
    monkeypatch.setattr("ffalora.studies.requirements.check_requirements", refuse)
    monkeypatch.setattr("ffalora.cli.study._run", lambda grid, *_: begun.append(grid.name))
    found = CliRunner().invoke(command, ["tier-a", "--scale", "paper", "--output", str(tmp_path / "studies")])
    assert "cannot be run" in str(found.exception) and begun == []


def test_a_base_that_a_study_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"--base 'paper-gsm8k': Rank at scale paper has the bases paper-sst2"):
        load_grid("rank", "paper", "smoke", base="paper-gsm8k")


def test_flags_are_refused_where_all_studies_are_tried():
    found = CliRunner().invoke(command, ["all", "--scale", "paper", "--dry-run", "--adapter.rank", "4"])
    assert isinstance(found.exception, ConfigError)
