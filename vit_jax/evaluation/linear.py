"""Linear probes of frozen features: logistic regression to its optimum, or by SGD.

`lbfgs` solves scikit-learn's multinomial logistic regression, `sgd` trains as self-supervised
papers do, momentum 0.9 and a cosine to 0. A part of the training examples chooses the strength of
the penalty, or the learning rate; then all of them train. Features are standardised, unless
`standardise` says otherwise.
"""

import collections
from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import numpy as np

from vit_jax import figures
from vit_jax.data import stratified
from vit_jax.evaluation import fitting, views
from vit_jax.evaluation.candidates import Candidate
from vit_jax.evaluation.frozen import Classifier, Frozen
from vit_jax.evaluation.probes import Probes, Settings
from vit_jax.evaluation.store import Tokens
from vit_jax.evaluation.subject import Subject
from vit_jax.evaluation.views import Features
from vit_jax.models.readout import Patch
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.progress import track

Head = tuple[np.ndarray, np.ndarray]  # kernel `F K`, bias `K`
# (features, labels, one number of the grid) -> a head
Solver = Callable[[np.ndarray, np.ndarray, float], Head]


@dataclasses.dataclass(frozen=True)
class Linear:
  """A head on features less `mean`, divided by `scale`."""

  mean: np.ndarray
  scale: np.ndarray
  head: Head
  details: dict[str, Any]

  def predict(self, features: np.ndarray) -> dict[str, np.ndarray]:
    """Classes `n` for features `n F`."""
    kernel, bias = self.head
    return {'linear': (((features - self.mean) / self.scale) @ kernel + bias).argmax(-1)}


class LinearProbe(Frozen):
  """Accuracy of a linear classifier on frozen features.

  Args:
    solver: lbfgs or sgd.
    strengths: lbfgs: inverse strengths of the penalty, scikit-learn's C, to choose from.
    learning_rates: sgd: to choose from, at its batch size.
    held_out: share of the training examples that chooses.
    standardise: whether features have mean 0 and deviation 1 over the training examples.
    epochs, batch_size: sgd.
    seed: of the choice of that part, and of the order of examples.
  """

  name = 'linear'

  def __init__(
    self,
    subject: Subject,
    *,
    solver: str,
    strengths: tuple[float, ...],
    learning_rates: tuple[float, ...],
    held_out: float,
    standardise: bool,
    epochs: int,
    batch_size: int,
    seed: int,
    layers: str,
    readout: str,
  ):
    check_choice('config.evaluation.linear.solver', solver, ('lbfgs', 'sgd'))
    self._grid = sorted(strengths if solver == 'lbfgs' else learning_rates)
    if min(epochs, batch_size) < 1:
      raise ValueError(f'config.evaluation.linear: {epochs=} and {batch_size=} must be at least 1')
    if not self._grid or self._grid[0] <= 0 or not 0 < held_out < 1:
      raise ValueError(
        f'config.evaluation.linear: {strengths=} and {learning_rates=} must be at least one, above '
        f'0, and {held_out=} between 0 and 1'
      )
    self._held_out, self._seed, self._solver = held_out, seed, solver
    self._standardise = standardise
    settings = Settings(epochs, batch_size, 'zero', 'cosine', seed, 'sgd')
    sgd: Solver = lambda x, labels, rate: descend(  # noqa: E731
      x, labels, rate, settings, self.num_classes, own_mesh(subject)
    )
    self._solve = {'lbfgs': regress, 'sgd': sgd}[solver]
    super().__init__(subject, ['linear'], layers, readout)
    source = subject.data.splits['train']
    few = min(held_out, 1 - held_out) * len(source) < self.num_classes + 1
    if len(self._grid) > 1 and len(source) and few:  # Else no labels need to be read.
      split(views.labels_of(source), held_out, seed)

  def fit(self, train: Features) -> list[Classifier]:
    """A head for each view."""
    everything = train.read(np.arange(len(train.labels)))
    return [self.choose(x, train.labels) for x in everything]

  def choose(self, x: np.ndarray, labels: np.ndarray) -> Classifier:
    """The head of one view, its number of the grid chosen on a part, trained on all."""
    mean, scale = x.mean(0), x.std(0) + 1e-5
    if not self._standardise:
      mean, scale = np.zeros_like(mean), np.ones_like(scale)
    x = (x - mean) / scale
    best, right = self._grid[0], {}
    if len(self._grid) > 1:
      right = self.compare(x, labels)
      best = max(right, key=lambda number: right[number])  # Of equal ones the smallest.
    key = 'strength' if self._solver == 'lbfgs' else 'learning_rate'
    head = self._solve(x, labels, best)
    details = {'solver': self._solver, key: best, 'held_out': {str(k): v for k, v in right.items()}}
    return Linear(mean, scale, head, details)

  def compare(self, x: np.ndarray, labels: np.ndarray) -> dict[float, float]:
    """The accuracy of each number of the grid on the examples that are held out."""
    rest, held = split(labels, self._held_out, self._seed)
    right = {}
    for number in track(self._grid, len(self._grid), f'linear, {self._solver}', 'fits'):
      kernel, bias = self._solve(x[rest], labels[rest], number)
      right[number] = float(((x[held] @ kernel + bias).argmax(-1) == labels[held]).mean())
    return right

  def draw(self, rows: list[dict[str, Any]]) -> Any:
    """Accuracy on the held-out part against the grid, a line a layer."""
    names = [f'{row["layer"]}: test {row["linear"]:.1%}' for row in rows]
    found = {name: [*row['held_out'].values()] for name, row in zip(names, rows, strict=True)}
    xlabel = 'C, inverse strength of the penalty' if self._solver == 'lbfgs' else 'learning rate'
    grid = self._grid if len(self._grid) > 1 else []
    return figures.lines(grid, found, xlabel, 'accuracy, held-out part of train')


def split(labels: np.ndarray, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows that train and rows that choose, with the same share of every class, rounded.

  Raises:
    ValueError: a part would be empty or smaller than the number of classes.
  """
  alone = 1 in np.bincount(labels)  # One example cannot be on both sides.
  try:
    return stratified.split(len(labels), held_out, seed, None if alone else labels)
  except ValueError as error:
    raise ValueError(
      f'config.evaluation.linear.{held_out=} cannot split {len(labels)} training examples: '
      f'{error}; with one number in strengths, or learning_rates, none is held out'
    ) from None


def regress(x: np.ndarray, labels: np.ndarray, strength: float) -> Head:
  """The optimum of multinomial logistic regression, by L-BFGS (scikit-learn)."""
  from sklearn.linear_model import LogisticRegression

  if labels.min() == labels.max():  # The one example of another class may be held out.
    only = np.full(labels[0] + 1, -np.inf)
    only[-1] = 0
    return np.zeros((x.shape[1], len(only))), only
  found = LogisticRegression(C=strength, max_iter=2000, tol=1e-5).fit(x, labels)
  kernel, bias = found.coef_.T, found.intercept_
  if len(found.classes_) == 2:  # Its one column says what the second class has above the first.
    kernel, bias = (np.concatenate([0 * part, part], axis=-1) for part in (kernel, bias))
  size = found.classes_.max() + 1
  head = np.zeros((x.shape[1], size)), np.full(size, -np.inf)  # A class without examples: never.
  head[0][:, found.classes_], head[1][found.classes_] = kernel, bias
  return head


def own_mesh(subject: Subject) -> Any:
  """The devices, where one process has them all; of several each trains the same on one."""
  return subject.mesh if jax.process_count() == 1 else None


def descend(
  x: np.ndarray,
  labels: np.ndarray,
  rate: float,
  settings: Settings,
  num_classes: int,
  mesh: Any = None,
) -> Head:
  """A head trained by SGD in mini-batches, as the lab trains its probes."""
  width = x.shape[1]
  module = Patch((), (1, 1), 1)  # The one token that there is.
  probes = Probes([Candidate('features', module, width)], shape=(1, width), num_classes=num_classes,
                  first=0, settings=settings, mesh=mesh)  # fmt: skip
  tokens, rows = Tokens(x.astype(np.float32)[None, :, None], labels), np.arange(len(labels))
  seeds, rates = [settings.seed], np.full((1, 1), rate)
  trained = fitting.epochs(probes, tokens, rows, rates, seeds, 'linear, sgd')
  ((params, _),) = collections.deque(trained, maxlen=1)  # After the last epoch.
  head = params['fixed'][str(width)]
  return np.asarray(head['kernel'][0, 0, 0]), np.asarray(head['bias'][0, 0, 0])
