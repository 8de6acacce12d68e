"""Linear classifiers on frozen tokens: every readout, learning rate and seed in one program.

Shapes: `S` seeds, `R` readouts, `L` learning rates, `B` examples, `K` classes, `F` features.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from vit_jax.evaluation import batch_norm
from vit_jax.evaluation.candidates import Candidate
from vit_jax.evaluation.mapped import in_turn, over
from vit_jax.evaluation.probe_settings import Settings
from vit_jax.evaluation.store import Tokens
from vit_jax.models.readout import Normalised, WeightedMix
from vit_jax.runtime import sharding

__all__ = ['Probes', 'Settings', 'apply_head', 'cross_entropy']

AT_ONCE = 4e8  # bytes of tokens, over all seeds, that a step looks at in one part


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
    # By the width of their features, and what is normalised over batches: '768', '768+batch'; where
    # tokens are, by the first of them too: '768+batch_before+1'.
    self.fixed: dict[str, list[Candidate]] = {}
    for candidate in candidates:
      if not candidate.learned:
        start = [str(candidate.start)] * ('batch_before' in candidate.batch)
        stack = '+'.join([str(candidate.width), *candidate.batch, *start])
        self.fixed.setdefault(stack, []).append(candidate)
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

  def at_once(self, seeds: int) -> int:
    """How many examples a step looks at in one part; a larger batch is added up from several."""
    return max(1, int(AT_ONCE / (4 * seeds * self.shape[0] * self.shape[1])))

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
    for name, stack in self.fixed.items():
      repeat = (len(stack), rates)
      head = self.settings.head_of(key, stack[0].width, self.num_classes)
      params['fixed'][name] = jax.tree.map(
        lambda x, repeat=repeat: jnp.broadcast_to(x, repeat + x.shape), head
      )
    for candidate in self.learned:
      features, variables = candidate.module.init_with_output(key, tokens)
      head = self.settings.head_of(key, features.shape[-1], self.num_classes)
      one = {'readout': variables.get('params', {}), 'head': head}
      params['learned'][candidate.name] = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (rates, *x.shape)), one
      )
    return params | {'held': self.held(params, tokens)}

  def held(self, params, tokens: Float[Array, 'B T D']) -> dict[str, Any]:
    """What one seed normalises with in evaluation, before any step."""
    if not any(candidate.batch for candidate in self.candidates):
      return {}
    given = params, tokens, jnp.zeros(len(tokens), int), jnp.ones(len(tokens))
    found = jax.eval_shape(self.measure, *given)[1]
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)

  def parameters(self, candidate: Candidate) -> int:
    """How many numbers are trained for a readout."""
    shapes = jax.eval_shape(lambda: self.init(0, 1))
    if candidate.learned:
      return sum(x.size for x in jax.tree.leaves(shapes['learned'][candidate.name]))
    name = next(name for name, stack in self.fixed.items() if candidate in stack)
    return sum(x.size for x in jax.tree.leaves(shapes['fixed'][name])) // len(self.fixed[name])

  def measure(
    self, params, tokens: Float[Array, 'B T D'], random: Int[Array, 'B'], mask: Any = None
  ) -> tuple[Float[Array, 'R L B K'], dict[str, Any]]:
    """The logits of one seed in the order of the candidates, and the statistics in them.

    Args:
      mask: in training, the examples whose statistics normalise; None: those that `params` hold do.
    """
    tokens, parts = tokens.astype(jnp.float32), []
    norm = batch_norm.BatchNorm(params.get('held'), mask)
    for name, stack in self.fixed.items():
      # (R, B, F) x (R, F, L K): learning rates share a product, as their features are the same.
      one = jax.vmap(apply_head, (0, None))  # over L
      features = self.features(name, norm.tokens(tokens, stack[0]), random)
      features = norm.features(name, features, stack[0])
      parts.append(jax.vmap(one)(params['fixed'][name], features))
    for candidate in self.learned:
      own = params['learned'][candidate.name], norm.held_of(candidate)
      given = *own, norm.tokens(tokens, candidate), mask
      logits, found = jax.vmap(probe_of(candidate), (0, 0, None, None))(*given)
      norm.found |= {} if found is None else {candidate.name: found}
      parts.append(logits[None])
    return jnp.concatenate(parts)[self.order], norm.found

  def logits(self, params, tokens: Float[Array, 'B T D'], random: Int[Array, 'B']):
    """The logits of one seed, `R L B K`, in the order of the candidates."""
    return self.measure(params, tokens, random)[0]

  def loss(self, params, batch) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
    """The sum over seeds, readouts and rates, which have no parameter in common; each by itself.

    Beside it loss and accuracy of each, and the statistics of the batch by seed.
    """
    measure = jax.vmap(self.measure, (0, 0, 0, None))
    logits, found = measure(params, batch['tokens'], batch['random'], batch['mask'])
    label = batch['label'][:, :, None]  # S R 1 B
    losses = cross_entropy(logits, label)
    correct = (logits.argmax(-1) == label).astype(jnp.float32)
    weights = batch['mask'] / jnp.maximum(batch['mask'].sum(), 1)
    loss, accuracy = (losses * weights).sum(-1), (correct * weights).sum(-1)
    return (loss * batch['share']).sum(), ({'loss': loss, 'accuracy': accuracy}, found)

  def moments(self, params) -> dict[str, Any]:
    """What the optimizer keeps, of all seeds and each probe by itself."""
    init = self.settings.rule.init
    return {
      'fixed': {name: over(init, 3)(tree) for name, tree in params['fixed'].items()},
      'learned': {name: over(init, 2)(tree) for name, tree in params['learned'].items()},
    }

  @functools.cached_property
  def step(self):
    """One step of all probes, of a whole batch or of a part of it.

    (params, moments, total, rates, decays, batch, first, last) -> (params, moments, total, values):
    `total` are the gradients of the parts before; the last part of a batch moves the parameters.
    """

    def step(params, moments, total, rates, decays, batch, first, last):
      trained = {key: params[key] for key in ('fixed', 'learned')}
      gradients, (values, found) = jax.grad(self.loss, has_aux=True)(trained, batch)
      held = batch_norm.blend(params['held'], found, batch['blend'])
      total = gradients if first else jax.tree.map(jnp.add, total, gradients)
      if last:
        trained, moments = self.move(trained, total, moments, rates, decays)
        total = None
      return trained | {'held': held}, moments, total, values

    everywhere = sharding.replicated(self.mesh)
    return jax.jit(step, donate_argnums=(0, 1), static_argnums=(6, 7), out_shardings=everywhere)

  def move(self, params, gradients, moments, rates, decays) -> tuple[Any, Any]:
    """Parameters and moments after a step at rates and decays `R L`, each probe by itself."""
    place = {candidate.name: i for i, candidate in enumerate(self.candidates)}
    places: dict[str, dict[str, Any]] = {
      'fixed': {k: np.array([place[c.name] for c in stack]) for k, stack in self.fixed.items()},
      'learned': {c.name: place[c.name] for c in self.learned},
    }
    moved: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for kind, axes in (('fixed', 3), ('learned', 2)):
      own = {
        name: over(self.settings.move, axes, shared=2)(
          params[kind][name], gradients[kind][name], moments[kind][name], rates[i], decays[i]
        )
        for name, i in places[kind].items()
      }
      for part, tree in enumerate(moved):
        tree[kind] = {name: pair[part] for name, pair in own.items()}
    return moved

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
      module, inner = candidate.module, params['learned'][candidate.name]['readout']
      if isinstance(module, Normalised):
        module, inner = module.pool, inner.get('pool')
      if isinstance(module, WeightedMix):
        x = inner['weights']
        softmax = module.readout_weights == 'softmax'
        found[candidate.name] = np.asarray(jax.nn.softmax(x) if softmax else x)
    return found


def probe_of(candidate: Candidate) -> Any:
  """A function of parameters, held statistics, tokens and mask: logits, and the batch's statistics.

  What it makes of tokens is made again in the backward pass, as that of many at once would not fit.
  Where it is as large as the model's own, one learning rate and seed comes after another.
  """

  def read(own, held, tokens, mask):
    norm = batch_norm.BatchNorm({candidate.name: held}, mask)
    features = candidate.module.apply({'params': own['readout']}, tokens)
    features = norm.features(candidate.name, features, candidate)
    return apply_head(own['head'], features), norm.found.get(candidate.name)

  again = jax.checkpoint(read)
  return in_turn(again, 2) if candidate.module.heavy else again


def apply_head(head: dict[str, Array], features: Float[Array, 'B F']) -> Float[Array, 'B K']:
  return features @ head['kernel'] + head['bias']


def cross_entropy(logits: Array, labels: Array) -> Array:
  """Softmax cross-entropy over the last axis; labels may be broadcast."""
  log = jax.nn.log_softmax(logits)
  return -jnp.take_along_axis(log, jnp.broadcast_to(labels, log.shape[:-1])[..., None], -1)[..., 0]
