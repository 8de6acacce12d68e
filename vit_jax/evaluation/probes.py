"""Linear classifiers on frozen tokens: every readout, learning rate and seed in one program.

Shapes: `S` seeds, `R` readouts, `L` learning rates, `B` examples, `K` classes, `F` features.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np
import optax

from vit_jax.evaluation.candidates import Candidate
from vit_jax.evaluation.store import Tokens
from vit_jax.models.readout import WeightedMix
from vit_jax.runtime import sharding
from vit_jax.runtime.choices import check_choice

HEADS = ('zero', 'torch')
SCHEDULES = ('cosine', 'constant')
RULES = {'adam': optax.scale_by_adam(), 'sgd': optax.trace(0.9)}


@dataclasses.dataclass(frozen=True)
class Settings:
  """How probes are trained: on cross-entropy, whole epochs, the last batch smaller.

  Attributes:
    head: how heads start: zero, or torch: uniform within 1/sqrt(F), as torch's Linear.
    schedule: of the learning rate: cosine to 0, or constant.
    seed: of what the controls draw.
    optimizer: adam, or sgd with momentum 0.9.
  """

  epochs: int = 10
  batch_size: int = 128
  head: str = 'zero'
  schedule: str = 'cosine'
  seed: int = 0
  optimizer: str = 'adam'

  def __post_init__(self):
    check_choice('optimizer of probes', self.optimizer, RULES)
    check_choice('config.explore.head', self.head, HEADS)
    check_choice('config.explore.schedule', self.schedule, SCHEDULES)
    for key in ('epochs', 'batch_size'):
      if getattr(self, key) < 1:
        raise ValueError(f'config.explore.{key}={getattr(self, key)} must be at least 1')


class Probes:
  """Readouts with their heads on tokens of one shape.

  Args:
    candidates: in any order; those without parameters and of one width are stacked.
    shape: of what is read, `T D`.
    num_classes: `K`.
    first: the number of tokens before the patches.
    mesh: devices of this process over which each batch is cut; None: one.
  """

  def __init__(
    self,
    candidates: Sequence[Candidate],
    *,
    shape: tuple[int, int],
    num_classes: int,
    first: int,
    settings: Settings,
    mesh: Any = None,
  ):
    self.candidates = tuple(candidates)
    self.fixed: dict[str, list[Candidate]] = {}  # by the width of their features
    for candidate in candidates:
      if not candidate.learned:
        self.fixed.setdefault(str(candidate.width), []).append(candidate)
    self.learned = [candidate for candidate in candidates if candidate.learned]
    # Logits come out with the fixed first; this brings them back into the order of candidates.
    stacked = [candidate for stack in self.fixed.values() for candidate in stack]
    place = {candidate.name: i for i, candidate in enumerate((*stacked, *self.learned))}
    self.order = np.array([place[candidate.name] for candidate in candidates])
    self.shape, self.num_classes, self.first = shape, num_classes, first
    self.settings = settings
    self.mesh = mesh or sharding.make_mesh(1, jax.local_devices()[:1])

  def features(self, stack: str, tokens: Float[Array, 'B T D'], random: Int[Array, 'B']):
    """What the fixed readouts of a stack read: `R B F`."""
    picked = jnp.take_along_axis(tokens, random[:, None, None], axis=1)[:, 0]
    read: list[Any] = [
      picked if candidate.module is None else candidate.module.apply({}, tokens)
      for candidate in self.fixed[stack]
    ]
    return jnp.stack(read)

  def read(self, tokens: np.ndarray, random: np.ndarray) -> np.ndarray:
    """`features` of the fixed readouts, which have one width here, in float32."""
    return np.asarray(self._read(tokens, random))

  @functools.cached_property
  def _read(self):
    (stack,) = self.fixed
    return jax.jit(lambda x, random: self.features(stack, x.astype(jnp.float32), random))

  def init(self, seed: int, rates: int) -> dict[str, Any]:
    """Parameters of one seed: stacks of fixed readouts `R L ...`, each learned one `L ...`."""
    key, tokens = jax.random.key(seed), jnp.zeros((1, *self.shape))
    params: dict[str, Any] = {'fixed': {}, 'learned': {}}
    for width, stack in self.fixed.items():
      repeat = (len(stack), rates)
      params['fixed'][width] = jax.tree.map(
        lambda x, repeat=repeat: jnp.broadcast_to(x, repeat + x.shape), self.head(key, int(width))
      )
    for candidate in self.learned:
      features, variables = candidate.module.init_with_output(key, tokens)
      one = {'readout': variables.get('params', {}), 'head': self.head(key, features.shape[-1])}
      params['learned'][candidate.name] = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (rates, *x.shape)), one
      )
    return params

  def head(self, key, width: int) -> dict[str, Array]:
    """Kernel and bias of a head."""
    limit = 0.0 if self.settings.head == 'zero' else width**-0.5
    keys = jax.random.split(key)
    return {
      'kernel': jax.random.uniform(keys[0], (width, self.num_classes), minval=-limit, maxval=limit),
      'bias': jax.random.uniform(keys[1], (self.num_classes,), minval=-limit, maxval=limit),
    }

  def parameters(self, candidate: Candidate) -> int:
    """How many numbers are trained for a readout."""
    shapes = jax.eval_shape(lambda: self.init(0, 1))
    if candidate.learned:
      return sum(x.size for x in jax.tree.leaves(shapes['learned'][candidate.name]))
    stack = str(candidate.width)
    return sum(x.size for x in jax.tree.leaves(shapes['fixed'][stack])) // len(self.fixed[stack])

  def logits(self, params, tokens: Float[Array, 'B T D'], random: Int[Array, 'B']):
    """The logits of one seed, `R L B K`, in the order of the candidates."""
    tokens, parts = tokens.astype(jnp.float32), []
    for stack in self.fixed:
      # (R, B, F) x (R, F, L K): learning rates share a product, as their features are the same.
      one = jax.vmap(apply_head, (0, None))  # over L
      parts.append(jax.vmap(one)(params['fixed'][stack], self.features(stack, tokens, random)))
    for candidate in self.learned:

      def read(own, module=candidate.module):
        return apply_head(own['head'], module.apply({'params': own['readout']}, tokens))

      # Attention's activations are as large as the model's: one learning rate after another.
      heavy, own = candidate.module.heavy, params['learned'][candidate.name]
      parts.append((jax.lax.map(jax.checkpoint(read), own) if heavy else jax.vmap(read)(own))[None])
    return jnp.concatenate(parts)[self.order]

  def loss(self, params, batch) -> tuple[Array, dict[str, Array]]:
    """The sum over seeds, readouts and rates, which have no parameter in common; each by itself."""
    logits = jax.vmap(self.logits)(params, batch['tokens'], batch['random'])
    label = batch['label'][:, :, None]  # S R 1 B
    losses = cross_entropy(logits, label)
    correct = (logits.argmax(-1) == label).astype(jnp.float32)
    mean = functools.partial(jnp.average, axis=-1, weights=batch['mask'])
    return mean(losses).sum(), {'loss': mean(losses), 'accuracy': mean(correct)}

  @property
  def rule(self) -> optax.GradientTransformation:
    """How gradients become updates, before the learning rate."""
    return RULES[self.settings.optimizer]

  @functools.cached_property
  def step(self):
    """(params, moments, rates, batch) -> (params, moments, metrics): one step of all probes."""

    def step(params, moments, rates, batch):
      gradients, values = jax.grad(self.loss, has_aux=True)(params, batch)
      updates, moments = self.rule.update(gradients, moments, params)
      updates = jax.tree.map(lambda u, rate: -rate * u, updates, self.spread(rates, updates))
      return optax.apply_updates(params, updates), moments, values

    everywhere = sharding.replicated(self.mesh)
    return jax.jit(step, donate_argnums=(0, 1), out_shardings=everywhere)

  def spread(self, rates: Float[Array, 'R L'], updates):
    """The learning rate of every parameter, in a shape that multiplies it."""
    place = {candidate.name: i for i, candidate in enumerate(self.candidates)}

    def fit(rate, x, axes: int):
      return rate.reshape((1, *rate.shape) + (1,) * (x.ndim - 1 - axes))

    found: dict[str, Any] = {'fixed': {}, 'learned': {}}
    for stack, tree in updates['fixed'].items():
      own = rates[np.array([place[candidate.name] for candidate in self.fixed[stack]], int)]
      found['fixed'][stack] = jax.tree.map(lambda x, own=own: fit(own, x, 2), tree)
    for name, tree in updates['learned'].items():
      own = rates[place[name]]
      found['learned'][name] = jax.tree.map(lambda x, own=own: fit(own, x, 1), tree)
    return found

  @functools.cached_property
  def evaluate_batch(self):
    """(params, tokens, random, label) -> losses and predictions `S R L B`."""

    def evaluate(params, tokens, random, label):
      logits = jax.vmap(self.logits, (0, None, None))(params, tokens, random)
      losses = cross_entropy(logits, jnp.broadcast_to(label, logits.shape[:-1]))
      return losses, logits.argmax(-1).astype(jnp.int32)

    return jax.jit(evaluate)

  def random(self, tokens: Tokens) -> np.ndarray:
    """For each view and example the patch that `random_patch` reads: `V N`."""
    rng = np.random.default_rng((self.settings.seed, 1))
    return rng.integers(self.first, self.shape[0], tokens.values.shape[:2])

  def training_labels(self, tokens: Tokens, seed: int) -> np.ndarray:
    """What each readout is trained on: `R N`; every seed shuffles the control's anew."""
    shuffled = np.random.default_rng((seed, 2)).permutation(tokens.labels)
    return np.stack([shuffled if c.shuffled else tokens.labels for c in self.candidates])

  def weights(self, params) -> dict[str, np.ndarray]:
    """Each learned mix's weights of the patches, `S L N`; with softmax, after it."""
    found = {}
    for candidate in self.learned:
      if isinstance(candidate.module, WeightedMix):
        x = params['learned'][candidate.name]['readout']['weights']
        softmax = candidate.module.readout_weights == 'softmax'
        found[candidate.name] = np.asarray(jax.nn.softmax(x) if softmax else x)
    return found


def apply_head(head: dict[str, Array], features: Float[Array, 'B F']) -> Float[Array, 'B K']:
  return features @ head['kernel'] + head['bias']


def cross_entropy(logits: Array, labels: Array) -> Array:
  """Softmax cross-entropy over the last axis; labels may be broadcast."""
  log = jax.nn.log_softmax(logits)
  return -jnp.take_along_axis(log, jnp.broadcast_to(labels, log.shape[:-1])[..., None], -1)[..., 0]
