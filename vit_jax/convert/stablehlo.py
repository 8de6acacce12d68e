"""A model as StableHLO: a folder that any JAX runs, without this project.

model.stablehlo      uint8 images of any batch size and the parameters -> logits; cpu, cuda and tpu
weights.safetensors  the parameters
model.json           the passport
load.py              ten lines that put the three together with jax and numpy alone
"""

import json
import pathlib
from typing import Any

from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np

from vit_jax import predict, weights
from vit_jax.formats import files
from vit_jax.formats.files import Entry
from vit_jax.runtime import atomic

FILES = ('model.stablehlo', 'weights.safetensors', 'model.json', 'load.py')
PLATFORMS = ('cpu', 'cuda', 'tpu')
LOADER = '''\
"""Runs the model beside this file: from load import model (pip install jax flatbuffers)."""
import json, pathlib
import jax, jax.export, numpy as np

here = pathlib.Path(__file__).parent
data = np.memmap(here / 'weights.safetensors', mode='r')
size = int(data[:8].view(np.uint64)[0])
header, data = json.loads(bytes(data[8 : 8 + size])), data[8 + size :]
params = {name: data[slice(*x['data_offsets'])].view(np.float32).reshape(x['shape'])
          for name, x in header.items() if name != '__metadata__'}
exported = jax.export.deserialize(bytearray((here / 'model.stablehlo').read_bytes()))
model = lambda images: exported.call(params, images)  # uint8 (batch, height, width, channels)
'''


def write(predictor: predict.Predictor, to: pathlib.Path) -> None:
  """Writes the folder `to`, which an error leaves without a load.py."""
  params: dict[str, Any] = traverse_util.flatten_dict(predictor.params, sep='/')
  exported = export(predictor, params)
  to.mkdir(parents=True, exist_ok=True)
  (to / 'load.py').unlink(missing_ok=True)  # It comes last: a crash leaves no mixture that runs.
  arrays = {name: Entry.of(np.asarray(x, np.float32)) for name, x in params.items()}
  files.write_safetensors(to / 'weights.safetensors', arrays, {})
  with atomic.replacing(to / 'model.stablehlo') as partial:
    partial.write_bytes(exported.serialize())
  atomic.write_text(to / 'model.json', json.dumps(predictor.passport.to_json(), indent=2))
  atomic.write_text(to / 'load.py', LOADER)


def export(predictor: predict.Predictor, params: dict[str, Any]) -> jax.export.Exported:
  """The forward pass from uint8 pixels of the model's size to logits.

  Attention is the plain one, whatever this machine would choose: a call of cuDNN runs on no other.
  """
  model = predictor.passport.build(attention='plain')
  compute = weights.make_forward(model, predictor.preprocess)

  def forward(params, images):
    tree = traverse_util.unflatten_dict(params, sep='/')
    return compute(tree, images)[0]

  batch = jax.export.symbolic_shape('batch')
  images = jax.ShapeDtypeStruct((*batch, *model.image_size, model.channels), jnp.uint8)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)
  return jax.export.export(jax.jit(forward), platforms=PLATFORMS)(shapes, images)


def check(source: str | pathlib.Path, to: pathlib.Path) -> list[dict[str, Any]]:
  """How far the exported program is from its source, at the logits."""
  ours = predict.load(source)
  shape = (3, *ours.model.image_size, ours.model.channels)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  namespace: dict[str, Any] = {'__file__': str(to / 'load.py')}
  exec((to / 'load.py').read_text(), namespace)
  expected = ours(images, ('logits',))['logits']
  difference = np.abs(np.asarray(namespace['model'](images)) - expected).max()
  return [{'place': 'logits', 'difference': float(difference / (expected.std() or 1))}]
