"""Planted evidence: do patch map, learned weights and attention find the patches that matter?

In each draw evidence is planted in other places (`data/planted.py`), readouts are trained as in the
lab, and each is asked which patches matter: the map of single patches by their accuracy, learned
mixes by the size of their weights, attention pooling by its mean attention.

W/probes/planted/<kind>.npz   what was found, a row a draw, and of which weights
W/reports/planted.json, .md, .html, planted/*.png
"""

import collections
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

from vit_jax import checkpoint, experiment, predict
from vit_jax.data import planted, sources
from vit_jax.defaults import Config
from vit_jax.evaluation import candidates, fitting, probes, store
from vit_jax.evaluation.candidates import Candidate
from vit_jax.evaluation.probes import Probes
from vit_jax.evaluation.store import Tokens
from vit_jax.explore import lab
from vit_jax.explore.planted_files import Found, check_same, restore, save
from vit_jax.models import tokens
from vit_jax.models.cross_attention import AttentiveReadout
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.progress import track

READ = ('run', 'platform', 'seed', 'init_from', 'explore')
PATCH_MAP = 'patch map'
ALONE = 'planted patches alone'


@dataclasses.dataclass(frozen=True)
class Reader:
  """What stands between planted data and readouts: a model's tokens, or the patches themselves.

  Attributes:
    grid, prefix: as of a model; without one a constant token takes the place of the class token.
    settings: the model's section, for the settings of readouts.
  """

  grid: tuple[int, int]
  prefix: tuple[str, ...] = ('class_token',)
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)
  heads: dict[str, Any] = dataclasses.field(default_factory=dict)
  predictor: predict.Predictor | None = None

  def sizes(self) -> dict[str, Any]:
    """Heads and MLP width, as a model says them."""
    return self.heads

  @functools.cached_property
  def identity(self) -> str:
    """A hash of weights, model and preprocessing, on which tokens depend; '' without a model."""
    known = self.predictor
    if known is None:
      return ''
    seen = {'weights': store.hash_of_params(known.params), 'model': self.settings,
            'preprocess': dataclasses.asdict(known.preprocess)}  # fmt: skip
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]

  def read(self, images: np.ndarray) -> np.ndarray:
    """Tokens `n T D` of canvases."""
    if self.predictor is None:
      return with_constant(planted.cut(images, images.shape[1] // self.grid[0]))
    return np.concatenate([
      tokens.rows(self.predictor(images[start : start + 256], ('tokens',))['tokens'])
      for start in range(0, len(images), 256)
    ])  # fmt: skip


def with_constant(values: np.ndarray) -> np.ndarray:
  """Tokens with a constant first one, which says nothing."""
  return np.pad(values, ((0, 0), (1, 0), (0, 0)))


def explore(config: Config, workdir: pathlib.Path) -> None:
  """Plants, trains and judges, kind by kind, and writes the report.

  Raises:
    ValueError: a value that cannot work, or results of other weights; nothing has been computed.
  """
  from vit_jax.explore import planted_page

  checkpoint.check_owner(workdir, config.to_dict())
  check(config)
  readers = {kind: reader_of(config, kind) for kind in config.explore.kinds}
  for kind, reader in readers.items():
    probes_of(config, reader, shape_of(config, kind, reader), 2)
  found, paths = {}, {kind: workdir / 'probes/planted' / f'{kind}.npz' for kind in readers}
  for kind, reader in readers.items():
    check_same(paths[kind], reader.identity)
  for kind, reader in readers.items():
    if not paths[kind].exists():
      done = study(config, kind, reader)
      checkpoint.claim(workdir, config.to_dict())
      save(paths[kind], done, reader.identity)
    found[kind] = restore(paths[kind])
  planted_page.write(workdir / 'reports', found, config)


def check(config: Config) -> None:
  """Raises a ValueError for values that cannot work."""
  lab.refuse_unread(config, READ)
  experiment.check_platform(config.platform)
  options = config.explore
  for kind in options.kinds:
    check_choice('kind in config.explore.kinds', kind, planted.KINDS)
  for key in ('draws', 'train_examples', 'test_examples', 'width', 'side'):
    if options[key] < 1:
      raise ValueError(f'config.explore.{key}={options[key]} must be at least 1')
  if not options.kinds or options.classes < 2 or options.learning_rate <= 0:
    raise ValueError(
      'config.explore: kinds must name one at least, classes be at least 2, learning_rate above 0'
    )
  if 2 * planted.SIDE % options.side or options.side > planted.SIDE:
    raise ValueError(f'config.explore.side={options.side} must divide {planted.SIDE} pixels')


def reader_of(config: Config, kind: str) -> Reader:
  """The model that `config.init_from` names, for pictures; else patches are read as they are."""
  side = 2 * planted.SIDE // config.explore.side
  if kind in planted.TOKENS or not config.init_from:
    return Reader((side, side))
  known = predict.load(config.init_from)
  grid = known.model.grid
  if 'tokens' not in known.output_names or not grid or min(grid) < 2:
    raise ValueError(
      f'{config.init_from} has no tokens on a grid of 2 x 2 at least, which planted quarters need'
    )
  return Reader(grid, known.model.prefix, known.passport.model, known.model.sizes(), known)


def study(config: Config, kind: str, reader: Reader) -> Found:
  """All draws of one kind; the same compiled program trains them all."""
  options, part, rows = config.explore, None, []
  example, classes = np.zeros(0), 10
  each = ([number] for number in range(options.draws))  # A bare number would count as many.
  for [number] in track(each, options.draws, f'planted: {kind}', 'draws'):
    rng = np.random.default_rng((config.seed, number, planted.KINDS.index(kind)))
    values, labels, evidence, possible, image = plant(config, kind, reader, rng)
    if part is None:
      classes, example = options.classes if kind in planted.TOKENS else 10, image
      part = probes_of(config, reader, (values.shape[1], values.shape[2]), classes)
    cut = options.train_examples
    train, test = Tokens(values[None, :cut], labels[:cut]), Tokens(values[None, cut:], labels[cut:])
    judged = judge(part, train, test, evidence, options, config.seed + number)
    rows.append((evidence, possible, *judged))
  evidence, possible, maps, accuracy = zip(*rows, strict=True)
  return Found(
    reader.grid, classes, np.stack(evidence),
    {name: np.stack([one[name] for one in maps]) for name in maps[0]},
    {name: np.array([one[name] for one in accuracy]) for name in accuracy[0]},
    np.array(possible), example,
  )  # fmt: skip


def plant(
  config: Config, kind: str, reader: Reader, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, np.ndarray]:
  """Tokens `n T D`, labels, evidence, what is possible, and a canvas, of training then test."""
  options = config.explore
  sizes = options.train_examples, options.test_examples
  if kind in planted.TOKENS:
    patches = reader.grid[0] * reader.grid[1]
    made = planted.plant_code(
      kind, rng, sum(sizes), patches, options.width, options.classes, options.strength
    )
    return with_constant(made.values), made.labels, made.evidence, made.possible, np.zeros(0)
  splits, _ = sources.digits(test_fraction=0.2, validation_fraction=0.0, split_seed=0)
  quarter = int(rng.integers(4))
  parts = [
    planted.paste_digits(kind, rng, splits[split], size, quarter)
    for split, size in zip(('train', 'test'), sizes, strict=True)
  ]
  images, labels = (
    np.concatenate([getattr(part, key) for part in parts]) for key in ('images', 'labels')
  )
  evidence = planted.patches_of(quarter, reader.grid)
  return reader.read(images), labels, evidence, float('nan'), images[0]


def shape_of(config: Config, kind: str, reader: Reader) -> tuple[int, int]:
  """Tokens and width of what a reader reads, `T D`."""
  if reader.predictor is not None:
    return lab.shape_of_tokens(reader.predictor, ('tokens',))
  patches, options = reader.grid[0] * reader.grid[1], config.explore
  return 1 + patches, options.width if kind in planted.TOKENS else options.side**2


def probes_of(config: Config, reader: Reader, shape: tuple[int, int], classes: int) -> Probes:
  """The readouts that are asked, for tokens of this shape."""
  options = config.explore
  named = tuple(dict.fromkeys(('patches', *options.readouts)))
  chosen = candidates.choose_candidates(named, reader, reader.settings, shape)
  settings = probes.Settings(options.epochs, options.batch_size, 'zero', 'cosine', config.seed)
  return Probes(
    chosen, shape=shape, num_classes=classes, first=len(reader.prefix), settings=settings
  )


def judge(
  part: Probes, train: Tokens, test: Tokens, evidence: np.ndarray, options: Any, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
  """Trains on one draw: the map of each finder, `N`, and the test accuracy of each readout."""
  rates, rows = np.full((len(part.candidates), 1), options.learning_rate), np.arange
  trained = fitting.epochs(part, train, rows(len(train.labels)), rates, [seed], 'planted')
  ((params, _),) = collections.deque(trained, maxlen=1)
  answers = fitting.evaluate(part, params, test, rows(len(test.labels)), 1)[1]
  right = (answers == test.labels).mean(-1)[0, :, 0]
  accuracy = {one.name: float(x) for one, x in zip(part.candidates, right, strict=True)}
  single = [accuracy[one.name] for one in part.candidates if one.patch]
  alone = float(np.array(single)[evidence].mean())
  maps = {PATCH_MAP: np.array(single)}
  maps |= {name: np.abs(x[0, 0]) for name, x in part.weights(params).items()}
  for candidate in part.learned:
    if not attends_to_patches(candidate, len(evidence)):
      continue
    own = jax.tree.map(lambda x: x[0, 0], params['learned'][candidate.name]['readout'])
    maps[candidate.name] = attention(candidate.module, own, test.values[0])
  patches = {one.name for one in part.candidates if one.patch}
  return maps, {ALONE: alone} | {name: x for name, x in accuracy.items() if name not in patches}


def attends_to_patches(candidate: Candidate, patches: int) -> bool:
  """Whether a readout weighs by attention exactly the patches, as they are read."""
  pool = getattr(candidate.module, 'pool', candidate.module)
  is_map = isinstance(pool, AttentiveReadout) and pool.is_map
  return is_map and math.prod(pool.grid) == patches and 'batch_before' not in candidate.batch


def attention(module: Any, params: Any, tokens: np.ndarray) -> np.ndarray:
  """The mean attention to each patch, `N`, over images, queries and heads."""
  _, state = module.apply({'params': params}, jnp.asarray(tokens), mutable='intermediates')
  (weights,) = jax.tree.leaves(state['intermediates'])  # B Q h N
  return np.asarray(weights).mean((0, 1, 2))
