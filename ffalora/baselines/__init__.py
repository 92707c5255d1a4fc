"""What a result has to beat: classifiers that train no encoder, at the same ε, from the same clients' data.

Pure functions over features ``[n,D]`` and labels of each client. Three cost nothing: the largest class of public
knowledge (``majority``), or the mean number (``mean_label``), and the nearest text that describes a class
(``zero_shot``). Two spend the budget of a run of their own: one noisy release of sums and counts (``class_means``) and
a linear layer trained by DP-SGD (``linear_probe``), which also exists without privacy.
"""

from .budget import Budget, noise_of
from .clients import ClientFeatures
from .constant import majority, mean_label
from .features import head_features, states_read_by
from .linear import LinearClassifier
from .means import ClassMeans, ReleasedSums, class_means, release_sums
from .probe import ProbePlan, linear_probe, plain_probe
from .texts import class_texts, prototypes, zero_shot

__all__ = [
    "Budget",
    "ClassMeans",
    "ClientFeatures",
    "LinearClassifier",
    "ProbePlan",
    "ReleasedSums",
    "class_means",
    "class_texts",
    "head_features",
    "linear_probe",
    "majority",
    "mean_label",
    "noise_of",
    "plain_probe",
    "prototypes",
    "release_sums",
    "states_read_by",
    "zero_shot",
]
