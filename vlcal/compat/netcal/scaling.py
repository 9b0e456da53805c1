"""Temperature scaling with netcal's names: probabilities in, probabilities out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vlcal import calibrators
from vlcal.calibrators import NotFitted
from vlcal.compat.netcal.inputs import applicable, clipped, problem, refuse
from vlcal.types import Predictions

if TYPE_CHECKING:
    from typing_extensions import Self

WHO = "netcal TemperatureScaling"


class TemperatureScaling:
    """Multiply the logits of probabilities by one factor that minimizes the NLL.

    Logits are log(p) of several classes and log(p / (1 - p)) of a binary problem, p clipped to
    eps..1 - eps of its precision. netcal stops its optimizer early, this one finds the factor
    exactly, so factors agree to about four digits. For float32 probabilities netcal's optimizer
    sees no slope at all and stays at 1; here float32 is calibrated like float64.

    Args:
        method: only "mle" is supported.
        momentum_epochs: unused.
        mcmc_steps: unused.
        mcmc_chains: unused.
        mcmc_warmup_steps: unused.
        vi_epochs: unused.
        detection: only False is supported.
        independent_probabilities: only False is supported.
        use_cuda: only False is supported.

    Raises:
        NotImplementedError: an option is not supported; the message names it.
    """

    def __init__(
        self,
        method: str = "mle",
        momentum_epochs: int = 1000,
        mcmc_steps: int = 250,
        mcmc_chains: int = 1,
        mcmc_warmup_steps: int = 100,
        vi_epochs: int = 1000,
        detection: bool = False,
        independent_probabilities: bool = False,
        use_cuda: str | bool = False,
    ) -> None:
        if method.lower() != "mle":
            refuse(WHO, "method", method, "only 'mle' is")
        if detection:
            refuse(WHO, "detection", detection, "only classification is")
        if independent_probabilities:
            refuse(WHO, "independent_probabilities", True, "only classes that exclude each other")
        if use_cuda:
            refuse(WHO, "use_cuda", use_cuda, "vlcal.calibrators.TemperatureScaling takes GPUs")
        self.method = method.lower()
        self.num_classes: int | None = None
        self._factor: float | None = None

    def fit(
        self,
        X: Any,
        y: Any,
        random_state: int | None = None,
        tensorboard: bool = True,
        log_dir: str | None = None,
    ) -> Self:
        """Find the factor; nothing is random and nothing is logged.

        Args:
            X: probabilities, [N] of class 1 or [N, C].
            y: labels [N] or one-hot [N, C].
            random_state: unused.
            tensorboard: unused.
            log_dir: unused.

        Raises:
            NoSamplesError: N is 0.
            ValueError: the arrays are no probabilities and labels.
        """
        probs, truth, self.num_classes = problem(WHO, X, y, False)
        logits = _logits(probs)
        if logits.ndim == 1:
            logits = torch.stack([torch.zeros_like(logits), logits], -1)
        val = Predictions(logits=logits, labels=torch.from_numpy(truth))
        temperature = calibrators.TemperatureScaling().fit(val).temperature_
        assert temperature is not None
        self._factor = 1 / temperature
        return self

    def transform(
        self,
        X: Any,
        num_samples: int = 1000,
        random_state: int | None = None,
        mean_estimate: bool = False,
    ) -> np.ndarray:
        """Calibrated probabilities in the shape and precision of X; [N] for two columns.

        Raises:
            NotFitted: `fit` was not called.
            ValueError: X has other classes than those of `fit`.
        """
        if self.num_classes is None or self._factor is None:
            raise NotFitted(f"{WHO}: fit comes before transform")
        logits = _logits(applicable(WHO, X, self.num_classes, False)) * self._factor
        calibrated = logits.sigmoid() if logits.ndim == 1 else logits.softmax(-1)
        return calibrated.numpy()

    def fit_transform(self, X: Any, y: Any) -> np.ndarray:
        """`fit`, then `transform` of the same probabilities."""
        return self.fit(X, y).transform(X)

    @property
    def temperature(self) -> np.ndarray:
        """The factor [1] that multiplies logits: netcal's name for 1 / temperature."""
        if self._factor is None:
            raise NotFitted(f"{WHO}: fit comes before temperature")
        return np.array([self._factor])

    weights = temperature


def _logits(probs: np.ndarray) -> Tensor:
    """Inverse softmax [N, C], or inverse sigmoid [N], in the precision of the probabilities."""
    clear = torch.from_numpy(np.ascontiguousarray(clipped(probs)))
    return clear.logit() if clear.ndim == 1 else clear.log()
