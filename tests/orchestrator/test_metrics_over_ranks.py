"""P6 over torchmetrics: for each of these classes the value over any partition to ranks is that of one process.

`workers/README.md` lists them; `test_the_list_in_the_readme_is_this_one` keeps it so.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics as tm
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import Metric, classification, nominal, regression, retrieval, segmentation, text

from orchestrator.reduce import each_rank, reduce_packs
from workers.metrics import empty_copy, pack_metric

Make = Callable[[], Metric]
Batches = list[tuple[Any, ...]]
SIZES = (5, 1, 8, 3, 5, 2, 7)  # samples of the batches, uneven on purpose


def batches_of(one: Callable[[int, torch.Generator], tuple[Any, ...]]) -> Batches:
    generator = torch.Generator().manual_seed(11)
    return [one(size, generator) for size in SIZES]


def real(n: int, g: torch.Generator) -> tuple[Any, ...]:
    return torch.randn(n, generator=g), torch.randn(n, generator=g)


def positive(n: int, g: torch.Generator) -> tuple[Any, ...]:
    return torch.rand(n, generator=g) + 0.1, torch.rand(n, generator=g) + 0.1


def one_number(n: int, g: torch.Generator) -> tuple[Any, ...]:
    return (torch.randn(n, generator=g),)


def rows(n: int, g: torch.Generator) -> tuple[Any, ...]:
    return torch.randn(n, 4, generator=g), torch.randn(n, 4, generator=g)


def shares(n: int, g: torch.Generator) -> tuple[Any, ...]:
    return tuple(torch.softmax(torch.randn(n, 4, generator=g), dim=1) for _ in range(2))


def binary(n: int, g: torch.Generator) -> tuple[Any, ...]:
    return torch.rand(n, generator=g), torch.randint(0, 2, (n,), generator=g)


def several(n: int, g: torch.Generator) -> tuple[Any, ...]:
    return torch.softmax(torch.randn(n, 4, generator=g), dim=1), torch.randint(0, 4, (n,), generator=g)


def labels(n: int, g: torch.Generator) -> tuple[Any, ...]:
    return torch.rand(n, 3, generator=g), torch.randint(0, 2, (n, 3), generator=g)


def groups(n: int, g: torch.Generator) -> tuple[Any, ...]:
    return torch.randint(0, 3, (n,), generator=g), torch.randint(0, 3, (n,), generator=g)


def queries(n: int, g: torch.Generator) -> tuple[Any, ...]:
    scores, relevant = binary(n, g)
    return scores, relevant, torch.randint(0, 3, (n,), generator=g)


def masks(n: int, g: torch.Generator) -> tuple[Any, ...]:
    return tuple(torch.randint(0, 3, (n, 6, 6), generator=g) for _ in range(2))


def logits(n: int, g: torch.Generator) -> tuple[Any, ...]:
    return torch.randn(n, 5, 6, generator=g), torch.randint(0, 6, (n, 5), generator=g)


def sentences(n: int, g: torch.Generator) -> tuple[Any, ...]:
    words = ["a", "quick", "brown", "fox", "jumps", "over", "the", "dog"]

    def sentence() -> str:
        return " ".join(words[int(i)] for i in torch.randint(0, len(words), (6,), generator=g))

    return [sentence() for _ in range(n)], [sentence() for _ in range(n)]


def translations(n: int, g: torch.Generator) -> tuple[Any, ...]:
    said, meant = sentences(n, g)
    return said, [[one] for one in meant]


CASES: dict[str, tuple[Make, Callable[..., tuple[Any, ...]]]] = {
    "MeanMetric": (tm.MeanMetric, one_number),
    "SumMetric": (tm.SumMetric, one_number),
    "MaxMetric": (tm.MaxMetric, one_number),
    "MinMetric": (tm.MinMetric, one_number),
    "CatMetric": (tm.CatMetric, one_number),
    "MeanSquaredError": (regression.MeanSquaredError, real),
    "MeanAbsoluteError": (regression.MeanAbsoluteError, real),
    "MeanSquaredLogError": (regression.MeanSquaredLogError, positive),
    "MeanAbsolutePercentageError": (regression.MeanAbsolutePercentageError, positive),
    "SymmetricMeanAbsolutePercentageError": (regression.SymmetricMeanAbsolutePercentageError, positive),
    "WeightedMeanAbsolutePercentageError": (regression.WeightedMeanAbsolutePercentageError, positive),
    "R2Score": (regression.R2Score, real),
    "ExplainedVariance": (regression.ExplainedVariance, real),
    "PearsonCorrCoef": (regression.PearsonCorrCoef, real),
    "SpearmanCorrCoef": (regression.SpearmanCorrCoef, real),
    "KendallRankCorrCoef": (regression.KendallRankCorrCoef, real),
    "ConcordanceCorrCoef": (regression.ConcordanceCorrCoef, real),
    "CosineSimilarity": (regression.CosineSimilarity, rows),
    "KLDivergence": (regression.KLDivergence, shares),
    "LogCoshError": (regression.LogCoshError, real),
    "MinkowskiDistance": (lambda: regression.MinkowskiDistance(p=3), real),
    "RelativeSquaredError": (regression.RelativeSquaredError, real),
    "TweedieDevianceScore": (lambda: regression.TweedieDevianceScore(power=1.5), positive),
    "BinaryAccuracy": (classification.BinaryAccuracy, binary),
    "BinaryPrecision": (classification.BinaryPrecision, binary),
    "BinaryRecall": (classification.BinaryRecall, binary),
    "BinaryF1Score": (classification.BinaryF1Score, binary),
    "BinaryAUROC": (classification.BinaryAUROC, binary),
    "BinaryAveragePrecision": (classification.BinaryAveragePrecision, binary),
    "BinaryCalibrationError": (classification.BinaryCalibrationError, binary),
    "BinaryStatScores": (classification.BinaryStatScores, binary),
    "BinaryMatthewsCorrCoef": (classification.BinaryMatthewsCorrCoef, binary),
    "BinaryPrecisionRecallCurve": (lambda: classification.BinaryPrecisionRecallCurve(thresholds=5), binary),
    "MulticlassAccuracy": (lambda: classification.MulticlassAccuracy(4), several),
    "MulticlassPrecision": (lambda: classification.MulticlassPrecision(4, average=None), several),
    "MulticlassF1Score": (lambda: classification.MulticlassF1Score(4, average="weighted"), several),
    "MulticlassConfusionMatrix": (lambda: classification.MulticlassConfusionMatrix(4), several),
    "MulticlassAUROC": (lambda: classification.MulticlassAUROC(4), several),
    "MulticlassCohenKappa": (lambda: classification.MulticlassCohenKappa(4), several),
    "MulticlassJaccardIndex": (lambda: classification.MulticlassJaccardIndex(4), several),
    "MulticlassHingeLoss": (lambda: classification.MulticlassHingeLoss(4), several),
    "MultilabelAccuracy": (lambda: classification.MultilabelAccuracy(3), labels),
    "MultilabelF1Score": (lambda: classification.MultilabelF1Score(3), labels),
    "MultilabelHammingDistance": (lambda: classification.MultilabelHammingDistance(3), labels),
    "MultilabelRankingLoss": (lambda: classification.MultilabelRankingLoss(3), labels),
    "MultilabelCoverageError": (lambda: classification.MultilabelCoverageError(3), labels),
    "CramersV": (lambda: nominal.CramersV(num_classes=3), groups),
    "TschuprowsT": (lambda: nominal.TschuprowsT(num_classes=3), groups),
    "RetrievalMRR": (retrieval.RetrievalMRR, queries),
    "RetrievalMAP": (retrieval.RetrievalMAP, queries),
    "RetrievalNormalizedDCG": (retrieval.RetrievalNormalizedDCG, queries),
    "MeanIoU": (lambda: segmentation.MeanIoU(num_classes=3, input_format="index"), masks),
    "Perplexity": (text.Perplexity, logits),
    "WordErrorRate": (text.WordErrorRate, sentences),
    "CharErrorRate": (text.CharErrorRate, sentences),
    "EditDistance": (text.EditDistance, sentences),
    "BLEUScore": (text.BLEUScore, translations),
}
ORDERED = {"CatMetric"}  # its value is a list, in the order of ranks


def flat(value: Any) -> torch.Tensor:
    """All numbers of a value, in one tensor."""
    if isinstance(value, dict):
        return torch.cat([flat(part) for _, part in sorted(value.items())])
    if isinstance(value, list | tuple):
        return torch.cat([flat(part) for part in value]) if value else torch.zeros(0, dtype=torch.float64)
    return torch.as_tensor(value, dtype=torch.float64).reshape(-1)


def alone(name: str) -> tuple[Batches, torch.Tensor]:
    """The batches of a case, and what one process makes of them."""
    make, one = CASES[name]
    batches, metric = batches_of(one), make()
    for batch in batches:
        metric.update(*batch)
    value = flat(metric.compute())
    return batches, value.sort().values if name in ORDERED else value


@pytest.mark.filterwarnings("ignore:.*will save all targets and predictions:UserWarning")
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=5)
@given(world=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_the_value_over_ranks_is_that_of_one_process(name: str, world: int, seed: int) -> None:
    batches, expected = alone(name)
    dealt = random.Random(seed)
    ranks = [CASES[name][0]() for _ in range(world)]
    for batch in batches:
        dealt.choice(ranks).update(*batch)
    packs = [{name: pack_metric(metric)} for metric in ranks]
    merged = reduce_packs(packs, {name: empty_copy(ranks[0])})
    found = flat([merged[key] for key in sorted(merged)])
    found = found.sort().values if name in ORDERED else found
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_each_rank_has_its_own_value_beside_the_reduced_one() -> None:
    shares = [[1.0, 3.0], [], [5.0]]
    packs = []
    for share in shares:
        metric = tm.MeanMetric()
        for number in share:
            metric.update(number)
        packs.append({"loss": pack_metric(metric)} if share else {})
    empty = {"loss": tm.MeanMetric()}
    assert each_rank("loss", packs, empty) == [2.0, None, 5.0]
    assert reduce_packs(packs, empty) == {"loss": 3.0}


def test_the_list_in_the_readme_is_this_one() -> None:
    assert len(CASES) >= 40
    readme = Path(__file__, "../../../workers/README.md").resolve().read_text()
    listed = readme.partition("Tested for any partition over ranks: ")[2].partition(".\n")[0]
    assert listed.replace("\n", " ").replace("`", "").split(", ") == sorted(CASES)
