"""Changes of training pictures, one by one: a JSON line each, milliseconds a picture at 224 pixels.

  python benchmarks/augment.py [--pictures FOLDER] [--rounds 5]

One thread; crops begin with decoded pixels of 375 x 500, all else with those of the model's size.
Without a folder of pictures it is a gradient with noise on it. A line holds the median of the
rounds, in which all cases take turns, and the time as a multiple of the plain crop's. Then what the
compiled step does to a batch of as many pictures, on the device.
"""

import argparse
import pathlib
import statistics
import time

import numpy as np
import work as works

SIZE, RAW = (224, 224), (375, 500)
DEIT = dict(randaugment=2, randaugment_resize='bicubic')
CHANGES = {
  'crop, linear': dict(crop='random_resized', crop_area=(0.08, 1.0)),
  'crop, bicubic': dict(crop='random_resized', crop_area=(0.08, 1.0), crop_resize='bicubic'),
  'crop, padded, reflect': dict(crop='padded', crop_border='reflect'),
  'flip': dict(flip=True),
  'colour jitter': dict(colour_jitter=0.3),
  'randaugment, DeiT': DEIT,
  'affine': dict(rotate=15.0, scale=0.1, shear=5.0, translate=0.1),
  'all of DeiT': DEIT
  | dict(crop='random_resized', crop_area=(0.08, 1.0), crop_resize='bicubic', flip=True),
}
PLAIN = 'crop, linear'


def pictures(folder, count):
  """Decoded pictures of one size: of a folder, or a gradient with noise on it."""
  from vit_jax.data import preprocess

  raw = preprocess.Preprocess(RAW, 3)
  if folder:
    return [raw(path) for path in preprocess.find_images([folder])[:count]]
  rows, columns = np.mgrid[0 : RAW[0], 0 : RAW[1]]
  ramp = 100 * (rows / RAW[0] + columns / RAW[1])[..., None] * np.array([1.0, 0.8, 0.6])
  noise = np.random.default_rng(0).uniform(0, 55, (count, *RAW, 3))
  return list((ramp + noise).astype(np.uint8))


def changes(raw):
  """Each kind of change: (name, function of a picture's number)."""
  from vit_jax.data import augment, preprocess

  model = preprocess.Preprocess(SIZE, 3, 'bilinear', (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
  small = [model(pixels) for pixels in raw]
  for name, settings in CHANGES.items():
    change = augment.Augment(**settings)
    seen = raw if settings.get('crop') == 'random_resized' else small

    def run(i, change=change, seen=seen):
      change(seen[i], np.random.default_rng((0, i)), model)

    yield name, run


def operations(raw):
  """Each operation of RandAugment at magnitude 9: (name, function of a picture's number)."""
  from PIL import Image

  from vit_jax.data import preprocess, randaugment

  small = [preprocess.Preprocess(SIZE, 3)(pixels) for pixels in raw]
  outside = {'resample': Image.Resampling.BICUBIC, 'fillcolor': (124, 116, 104)}
  for name in randaugment.choices(increasing=True):

    def run(i, operation=randaugment.OPERATIONS[name]):
      operation(small[i], 9.0, 1 - 2 * (i % 2), **outside)

    yield f'operation {name}', run


def milliseconds(run, count):
  """The time of a picture, a mean over all of them."""
  start = time.perf_counter()
  for i in range(count):
    run(i)
  return (time.perf_counter() - start) / count * 1e3


def on_host(options):
  """Times what threads of the host do before a picture goes to the device."""
  import cv2

  from vit_jax.runtime import memory

  memory.keep_freed(64 * SIZE[0] * SIZE[1])  # As the command does.
  cv2.setNumThreads(1)
  raw = pictures(options.pictures, options.count)
  cases = dict([*changes(raw), *operations(raw)])
  times = {name: [] for name in cases}
  for turn in range(options.rounds + 1):
    for name, run in cases.items():
      spent = milliseconds(run, len(raw))
      if turn:  # The first one loads what is needed.
        times[name].append(spent)
  medians = {name: statistics.median(values) for name, values in times.items()}
  machine = works.machine('opencv-python-headless', 'pillow', 'numpy')
  for name, median in medians.items():
    line = {
      'case': name,
      'where': 'host, one thread',
      'milliseconds_a_picture': round(median, 3),
      'times_plain_crop': round(median / medians[PLAIN], 2),
    }
    works.show(line | {'machine': machine})


def batch_changes(count):
  """What the compiled step does to a batch: (name, compiled function without arguments)."""
  import jax

  from vit_jax.objectives import mixing

  images = jax.random.uniform(jax.random.key(0), (count, *SIZE, 3)) * 255
  key, both = jax.random.key(1), dict(mixup=0.8, cutmix=1.0)

  def erase(key, images):
    return mixing.erase(key, images, 0.25, lambda x: x / 127.5 - 1)

  def all_of_it(key, images):
    return mixing.Mixing(**both)(key, erase(key, images))

  cases = {
    'normalise alone': lambda _, images: images / 127.5 - 1,
    'mixup': mixing.Mixing(mixup=0.8),
    'cutmix': mixing.Mixing(cutmix=1.0),
    'mixup or cutmix': mixing.Mixing(**both),
    'erasing': erase,
    'all of DeiT, batch': all_of_it,
  }
  for name, change in cases.items():
    compiled = jax.jit(lambda key, images, change=change: change(key, images))
    yield name, lambda compiled=compiled: jax.block_until_ready(compiled(key, images))


def on_device(options):
  """Times the changes of a whole batch, which are a part of the compiled step."""
  import jax

  cases = dict(batch_changes(options.count))
  times = {name: [] for name in cases}
  for turn in range(options.rounds + 1):
    for name, run in cases.items():
      start = time.perf_counter()
      run()
      if turn:  # The first one compiles.
        times[name].append((time.perf_counter() - start) / options.count * 1e3)
  machine = works.machine('jax')
  for name, values in times.items():
    spent = round(statistics.median(values), 3)
    line = {'case': name, 'where': f'device, {jax.devices()[0].device_kind}'}
    works.show(line | {'milliseconds_a_picture': spent, 'machine': machine})


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--pictures', type=pathlib.Path, help='a folder; none: made up')
  parser.add_argument('--count', type=int, default=64, help='pictures')
  parser.add_argument('--rounds', type=int, default=5)
  options = parser.parse_args()
  on_host(options)
  on_device(options)


if __name__ == '__main__':
  main()
