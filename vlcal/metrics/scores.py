"""NLL and Brier score: proper scores of the whole distribution; no bins."""

from __future__ import annotations

from vlcal.metrics.conventions import Convention
from vlcal.metrics.needs import need
from vlcal.types import Outcomes


def nll(outcomes: Outcomes, convention: Convention) -> float:
    """Negative log-likelihood: the mean of -log p(label), in nats; the same under every convention.

    Raises:
        MissingInput: the outcomes carry no log-likelihood.
    """
    return -float(need("nll", outcomes, "log_likelihood").double().mean())


def brier(outcomes: Outcomes, convention: Convention) -> float:
    """Brier score: the mean over samples of the sum over classes of (p - one-hot)^2, in 0..2.

    Brier, "Verification of forecasts expressed in terms of probability", 1950. For two classes this
    is twice the score of the binary form.

    Raises:
        MissingInput: the outcomes carry no Brier terms.
    """
    return float(need("brier", outcomes, "brier").double().mean())
