"""Weights of any origin with their passport: a run, the inference file of one, a weight file.

model/weights.npz     the parameters, in the official layout
model/model.json      the passport: model section, preprocessing, class names, step, origin
FILE.json             the passport beside a weight file that we wrote
"""

from collections.abc import Callable
import dataclasses
import json
import pathlib
from typing import Any

from flax import traverse_util
import jax
import numpy as np

import vit_jax
from vit_jax import checkpoint, data, defaults, models
from vit_jax.data.preprocess import Preprocess
from vit_jax.formats import adapt, files, official, read, settings_files, write
from vit_jax.formats.files import Arrays, Entry
from vit_jax.formats.weights import Weights, check_class_names
from vit_jax.runtime import atomic, fetch
from vit_jax.runtime.choices import check_choice
from vit_jax.runtime.sections import fields_of

FORMAT = 1  # of the passport; a higher one is refused
NEEDED = {'image_size', 'channels', 'num_classes'}  # what the data give to any section
SHAPE = NEEDED | {'colours'}


@dataclasses.dataclass(frozen=True)
class Passport:
  """What belongs to weights, whatever device they are used on.

  Attributes:
    model: the section that builds the model, without what is execution (kernel, remat, dtype).
    preprocess: what turns a picture into its input.
    class_names: in the order of the logits.
    step: of training, counted from 1; 0: not trained here.
    weights: 'raw', or 'ema' for an average over the steps.
    predictions: how logits become probabilities: softmax, or sigmoid.
    origin: where they come from, in words and settings.
  """

  model: dict[str, Any]
  preprocess: Preprocess
  class_names: list[str]
  step: int = 0
  weights: str = 'raw'
  predictions: str = 'softmax'
  origin: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def readout(self) -> str | None:
    """The readout that the head was trained on; None for a family that has no choice of one."""
    return self.model.get('readout')

  def build(self, *, device: Any = None, **execution) -> models.Model:
    """The model.

    Args:
      device: that it will compute on; None: the first one that is there.
      execution: how to compute, such as dtype='bfloat16'; what a family has no choice of, such as
        the attention of a BiT, does nothing there.

    Raises:
      ValueError: a key that says anything else.
    """
    for key in execution:
      check_choice('way to compute', key, models.EXECUTION)
    normal = defaults.part('model', self.model['name'])
    how = {key: normal[key] for key in models.EXECUTION if key in normal}
    how = {key: execution.get(key, value) for key, value in how.items()}
    return models.build(device=device, **self.model, **how)

  def to_json(self) -> dict[str, Any]:
    """The content of `model.json`."""
    own = {'format': FORMAT, 'vit_jax': vit_jax.__version__}
    return own | dataclasses.asdict(self)

  @classmethod
  def from_json(cls, content: Any) -> 'Passport':
    """The passport in a file of this version or an earlier one, whose missing keys are filled.

    Raises:
      ValueError: it is of a later format, or names settings that this version does not know.
    """
    check_content(content)
    model: dict[str, Any] = defaults.tuples(content['model'])
    preprocess: dict[str, Any] = defaults.tuples(content['preprocess'])
    normal = defaults.part('model', model['name']).to_dict()
    refuse_later('settings', model.keys() - normal.keys() - SHAPE)
    refuse_later('preprocessing', preprocess.keys() - fields_of(Preprocess))
    section = models.complete(normal | model)
    known = {field.name for field in dataclasses.fields(cls)} - {'model', 'preprocess'}
    return cls(
      {key: x for key, x in section.items() if key not in models.EXECUTION},
      Preprocess(**preprocess),
      **{key: content[key] for key in known if key in content},
    )


def check_content(content: Any) -> None:
  """Raises a ValueError for what is no passport, a damaged one, or one of a later format."""
  if not isinstance(content, dict):
    raise ValueError(f'no passport: {type(content).__name__} instead of an object')
  if content.get('format', FORMAT) > FORMAT:
    raise ValueError(f'a passport of format {content["format"]}; this version reads {FORMAT}')
  for key, kind in (('model', dict), ('preprocess', dict), ('class_names', (list, tuple))):
    if not isinstance(content.get(key), kind):
      raise ValueError(f'no passport, or a damaged one: it has no {key}')
  lacking = {'name', *NEEDED} - content['model'].keys()
  if lacking:
    raise ValueError(
      f'no passport, or a damaged one: its model has no {", ".join(sorted(lacking))}'
    )
  check_class_names(content['class_names'], content['model'].get('num_classes'))


def refuse_later(what: str, keys: set[str]) -> None:
  """Raises a ValueError where a passport has keys that this version does not know."""
  if keys:
    raise ValueError(f'a passport with {what} of a later version: {", ".join(sorted(keys))}')


@dataclasses.dataclass(frozen=True)
class Source:
  """Weights that are open: their passport is known, their arrays are read when asked for.

  Attributes:
    name: what a person called them.
    arrays: by our names.
  """

  name: str
  arrays: Arrays
  passport: Passport

  def flat(self) -> dict[str, np.ndarray]:
    """Every parameter by its whole name, in float32."""
    return {name: np.asarray(entry.load(), np.float32) for name, entry in self.arrays.items()}

  def tree(self) -> dict:
    """The parameters as the model takes them."""
    return traverse_util.unflatten_dict(self.flat(), sep='/')


def open_source(source: str | pathlib.Path) -> Source:
  """Opens weights.

  Args:
    source: a run's folder or its `model/`, a weight file, a folder of Hugging Face, or an address
      (`fetch.local`). Of a run, the best checkpoint (by `config.best`) counts, else the newest.

  Raises:
    FileNotFoundError: no such path.
    ValueError: it holds neither a model nor a checkpoint, or weights of a model that we lack.
  """
  path = fetch.local(source)
  own = own_folder(path)
  if own:
    told = own / 'model.json'
    arrays, about = files.open_file(own / 'weights.npz'), read_passport(told)
  elif path.is_file() or is_foreign(path):
    told, (arrays, about) = path, open_foreign(path)
  elif (path / 'checkpoints').exists():
    with checkpoint.Checkpoints(path, read_only=True) as checkpoints:
      params, content = checkpoints.restore_params()
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep='/')
    arrays = {name: Entry.of(np.asarray(x)) for name, x in flat.items()}
    with settings_files.naming(path):
      return Source(str(source), arrays, Passport.from_json(content))
  else:
    raise ValueError(f'{path} holds no checkpoint: neither model/model.json nor checkpoints/')
  with settings_files.naming(told):
    shapes = models.shapes_of(about.build())
  adapt.check_complete(arrays, shapes, path)
  return Source(str(source), arrays, about)


def load(source: str | pathlib.Path) -> tuple[dict, Passport]:
  """The model's parameters (numpy) and passport.

  Raises:
    as `open_source`.
  """
  opened = open_source(source)
  return opened.tree(), opened.passport


def own_folder(path: pathlib.Path) -> pathlib.Path | None:
  """Where `weights.npz` and `model.json` of ours lie, if `path` names them."""
  if path.is_file():
    beside = path.name == 'weights.npz' and path.with_name('model.json').exists()
    return path.parent if beside else None
  if (path / 'model.json').exists() and (path / 'weights.npz').exists():
    return path
  return path / 'model' if has_current_model(path) else None


def is_foreign(path: pathlib.Path) -> bool:
  """Whether a folder holds weights of Hugging Face, and no run of ours."""
  ours = ('model.json', 'model', 'checkpoints')
  return not any((path / name).exists() for name in ours) and (path / 'config.json').exists()


def open_foreign(path: pathlib.Path) -> tuple[Arrays, Passport]:
  """A weight file or folder of another library; one that we wrote has its passport beside it."""
  beside = write.beside(path)
  known = read_passport(beside) if path.is_file() and beside.exists() else None
  with settings_files.naming(beside):
    hints = hints_of(known) if known else {}
  found = read.read(path, models.vit.SIZES, hints)
  return found.arrays, known or describe(found, path)


def hints_of(passport: Passport) -> dict[str, Any]:
  """What a file's arrays alone do not say, in the words of Hugging Face's settings."""
  sizes = passport.build().sizes()
  names = {'num_heads': 'num_attention_heads', 'patch_size': 'patch_size'}
  known = {names[key]: sizes[key] for key in names if key in sizes}
  return known | {'image_size': list(passport.model['image_size'])}


def read_passport(path: pathlib.Path) -> Passport:
  """The passport in a file.

  Raises:
    ValueError: it is damaged, or of a later version; names the file.
  """
  content = settings_files.read(path)
  with settings_files.naming(path):
    return Passport.from_json(content)


def passport_of_run(workdir: pathlib.Path) -> Passport | None:
  """What a run itself says of its weights: with its newest checkpoint; None before the first."""
  content = checkpoint.newest_passport(workdir)
  return Passport.from_json(content) if content else None


def describe(found: Weights, path: pathlib.Path) -> Passport:
  """A passport for weights of others."""
  kind = found.model['kind']
  section = defaults.part('model', kind).to_dict() | models.MODELS[kind].section_of(found.model)
  count = section['num_classes']
  names = found.class_names or data.unnamed(count)
  preprocess = {'resize': 'bilinear', 'fit': 'squash', 'resize_small': None} | found.preprocess
  preprocess |= {'image_size': section['image_size'], 'channels': section['channels']}
  origin = {'file': str(path), 'family': found.family, 'notes': list(found.notes)}
  content = {'model': section, 'preprocess': preprocess, 'class_names': names, 'origin': origin}
  return Passport.from_json(content | {'predictions': found.predictions})


def write_model(folder: pathlib.Path, params: dict, passport: Passport) -> None:
  """Writes the inference file; the passport comes last, so that a crash leaves no false pair."""
  folder.mkdir(parents=True, exist_ok=True)
  partial = folder / 'partial.npz'
  official.write(partial, params)
  (folder / 'model.json').unlink(missing_ok=True)
  partial.replace(folder / 'weights.npz')
  atomic.write_text(folder / 'model.json', json.dumps(passport.to_json(), indent=2))


def has_current_model(workdir: pathlib.Path) -> bool:
  """Whether there is an inference file and the run has not gone on since it was written."""
  path = workdir / 'model/model.json'
  if not path.exists() or not (workdir / 'checkpoints').exists():
    return path.exists()
  with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
    return checkpoints.wanted_step() in (None, read_passport(path).step)


def has_zero_head(params: dict) -> bool:
  """Whether a head is there and all zero: it tells every class the same."""
  head = jax.tree.leaves(params.get('head', {}))
  return bool(head) and not any(np.any(x) for x in head)


def make_forward(model: models.Model, preprocess: Preprocess) -> Callable[..., tuple[Any, dict]]:
  """`forward(params, images, **more) -> (logits, outputs by name)`, for uint8 images `B H W C`.

  The one way from pixels to outputs: evaluation, predictions, the token cache and exports use it.
  Floats are taken as already normalised; `more` are other collections, such as perturbations.
  """

  def forward(params, images, **more) -> Any:
    if images.dtype == np.uint8:
      images = preprocess.normalise(images)
    answer: Any = model.apply({'params': params} | more, images)
    return answer

  return forward
