"""Reading pictures as training does, beside tf.data and timm: one JSON line a case.

  pip install -e '.[benchmark]'
  python benchmarks/input.py --pictures FOLDER_OF_JPEGS --rounds 5
  python benchmarks/input.py --pictures FOLDER_OF_JPEGS --recipe deit    # ours and timm's

Whole path: files -> random-resized crop to 224 -> flip -> batches of 64 -> the device; the recipe
'deit' crops bicubically and adds RandAugment, m9-mstd0.5-inc1. Each loader lives in a process of
its own; they are measured in turns, and a case reports the median of the rounds, so that a busy
machine slows all alike. `--steps 1000` watches the memory of ours instead.
"""

import argparse
import multiprocessing
import os
import pathlib
import statistics
import time

import work as works

SIZE, AREA, RATIO = 224, (0.05, 1.0), (3 / 4, 4 / 3)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The arguments of each loader that knows the recipe.
RECIPES = {
  'plain': {
    'ours': dict(crop_area=AREA),
    'timm': dict(scale=AREA, interpolation='bilinear'),
  },
  'deit': {
    'ours': dict(
      crop_area=(0.08, 1.0), crop_resize='bicubic', randaugment=2, randaugment_magnitude=9.0,
      randaugment_std=0.5, randaugment_increasing=True, randaugment_resize='bicubic',
    ),
    'timm': dict(
      scale=(0.08, 1.0), interpolation='bicubic', auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.0,
    ),
  },
}  # fmt: skip


def ours(files, batch, threads, recipe, processes=0):
  """vit_jax: threads decode regions into one array; normalisation is left to the device."""
  import jax
  import numpy as np

  from vit_jax import data
  from vit_jax.data import augment, pipeline, preprocess, sources
  from vit_jax.runtime import memory, sharding

  memory.keep_freed(batch * SIZE**2)  # As the command does.
  dataset = data.Dataset(
    {'train': sources.Listed(files, np.zeros(len(files), np.int32))},
    ('one',),
    preprocess.Preprocess((SIZE, SIZE), 3, 'bilinear', *IMAGENET),
    augment.Augment('random_resized', crop_ratio=RATIO, flip=True, **RECIPES[recipe]['ours']),
    threads=threads,
    processes=processes,
  )
  mesh = sharding.make_mesh(1)
  with dataset.workers() as workers:

    def make(step):
      return dataset.batch_at(step, batch_size=batch, seed=0, make=workers)

    def place(made):
      return sharding.place_batch(made, mesh)

    for placed in pipeline.stream(make, place, range(1, 10**9), workers.ahead(batch)):
      yield jax.block_until_ready(placed)['image'].shape[0]


def ours_by_processes(files, batch, threads, recipe):
  """The same with as many processes, as beside a GPU."""
  yield from ours(files, batch, threads, recipe, threads)


def ours_without_regions(files, batch, threads, recipe):
  """The same where libjpeg-turbo 3 is missing: Pillow decodes whole pictures."""
  from vit_jax.data import jpeg

  jpeg.decode = lambda *_: None
  yield from ours(files, batch, threads, recipe)


def tf_whole(files, batch, threads, _):
  """The official code: decode whole, crop, resize, float32 in -1..1."""
  import tensorflow as tf

  def make(path):
    image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
      tf.shape(image), tf.zeros([0, 0, 4], tf.float32), area_range=AREA, aspect_ratio_range=RATIO,
      min_object_covered=0, use_image_if_no_bounding_boxes=True,
    )  # fmt: skip
    image = tf.image.resize(tf.slice(image, begin, size), (SIZE, SIZE))
    return (tf.image.random_flip_left_right(image) - 127.5) / 127.5

  yield from tf_batches(tf, make, files, batch, threads)


def tf_crop(files, batch, threads, _):
  """tf.data at its best: decode the region alone, uint8."""
  import tensorflow as tf

  def make(path):
    data = tf.io.read_file(path)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
      tf.image.extract_jpeg_shape(data), tf.zeros([0, 0, 4], tf.float32), area_range=AREA,
      aspect_ratio_range=RATIO, min_object_covered=0, use_image_if_no_bounding_boxes=True,
    )  # fmt: skip
    window = tf.stack([begin[0], begin[1], size[0], size[1]])
    image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
    image = tf.image.random_flip_left_right(tf.image.resize(image, (SIZE, SIZE)))
    return tf.cast(image, tf.uint8)

  yield from tf_batches(tf, make, files, batch, threads)


def tf_batches(tf, make, files, batch, threads):
  options = tf.data.Options()
  options.threading.private_threadpool_size = threads
  dataset = tf.data.Dataset.from_tensor_slices(files).repeat().shuffle(len(files))
  dataset = dataset.map(make, threads).batch(batch, drop_remainder=True).prefetch(2)
  for images in dataset.with_options(options).as_numpy_iterator():
    yield len(images)


def timm_loader(files, batch, threads, recipe):
  """timm's loader: worker processes, Pillow, uint8 batches."""
  import torch

  try:
    import torchvision  # noqa: F401
  except RuntimeError:  # Its wheel is built for CUDA; a loader needs none of its operators.
    for name in ('nms', 'qnms'):
      torch.library.define(f'torchvision::{name}', '(Tensor a, Tensor b, float c) -> Tensor')
  import timm.data
  from timm.data import auto_augment

  # Pillow 13 refuses to keep no bit, which timm asks for at magnitude 10; older ones gave black.
  def mended(image, bits, **_):
    return auto_augment.posterize(image, max(1, bits))

  auto_augment.NAME_TO_OP['PosterizeIncreasing'] = mended
  multiprocessing.set_start_method('fork', force=True)  # Linux' own, as timm's users have it.

  class Files:
    transform = None

    def __len__(self):
      return 10**7

    def __getitem__(self, i):
      from PIL import Image

      return self.transform(Image.open(files[i % len(files)]).convert('RGB')), 0

  loader = timm.data.create_loader(
    Files(), (3, SIZE, SIZE), batch, is_training=True, num_workers=threads, ratio=RATIO,
    color_jitter=None, device=torch.device('cpu'), pin_memory=False, **RECIPES[recipe]['timm'],
  )  # fmt: skip
  for images, _ in loader.loader:
    yield len(images)


CASES = {
  'ours': ours,
  'ours, processes': ours_by_processes,
  'ours, Pillow alone': ours_without_regions,
  'tf.data, whole decode': tf_whole,
  'tf.data, decode_and_crop': tf_crop,
  'timm': timm_loader,
}
KNOW_EVERY_RECIPE = ('ours', 'ours, processes', 'ours, Pillow alone', 'timm')


def serve(name, files, batch, threads, recipe, pipe):
  """Answers each number with the images per second over so many batches."""
  batches = CASES[name](files, batch, threads, recipe)
  while (count := pipe.recv()) is not None:
    for _ in range(5):  # What was waiting is not counted.
      next(batches)
    start, seen = time.perf_counter(), sum(next(batches) for _ in range(count))
    pipe.send(seen / (time.perf_counter() - start))
  batches.close()  # Processes and their memory end with it.
  os._exit(0)  # Some loaders do not end by themselves.


def compare(options, files):
  context = multiprocessing.get_context('spawn')
  pipes = {}
  for name in options.cases:
    pipes[name], theirs = context.Pipe()
    arguments = (name, files, options.batch_size, options.threads, options.recipe, theirs)
    context.Process(target=serve, args=arguments).start()
  rates = {name: [] for name in pipes}
  for turn in range(options.rounds + 1):
    for name, pipe in pipes.items():
      time.sleep(1)  # The one before fills up what it keeps waiting.
      pipe.send(options.batches)
      rate = pipe.recv()
      if turn:  # The first one starts everything.
        rates[name].append(rate)
  for pipe in pipes.values():
    pipe.send(None)
  medians = {name: statistics.median(values) for name, values in rates.items()}
  for name, median in medians.items():
    line = {
      'case': name,
      'recipe': options.recipe,
      'images_per_second': round(median),
      'rounds': list(map(round, rates[name])),
    }
    if 'ours' in medians:
      line['ours_over_it'] = round(medians['ours'] / median, 2)
    works.show(line | {'machine': machine()})


def machine():
  """This machine and the libraries that read here."""
  names = ('jax', 'opencv-python-headless', 'turbojpeg', 'tensorflow', 'timm', 'torch', 'pillow')
  return works.machine(*names)


def watch_memory(options, files):
  """Resident memory of ours after a tenth of the steps and after all."""
  batches, marks = ours(files, options.batch_size, options.threads, options.recipe), {}
  for step in range(1, options.steps + 1):
    next(batches)
    if step in (options.steps // 10, options.steps):
      fields = pathlib.Path('/proc/self/statm').read_text().split()
      marks[step * options.batch_size] = round(int(fields[1]) * 4096 / 2**20)
  works.show(
    {'case': 'memory of ours', 'mebibytes_after_pictures': marks, 'machine': machine()}
  )  # fmt: skip
  os._exit(0)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--pictures', required=True, help='folder of JPEG files')
  parser.add_argument('--at_least', type=int, default=10_000, help='pictures; they are repeated')
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--batches', type=int, default=40, help='a round')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
  parser.add_argument('--steps', type=int, help='watch memory over so many steps instead')
  parser.add_argument('--recipe', default='plain', choices=RECIPES)
  parser.add_argument(
    '--cases', help=f'separated by ;: {"; ".join(CASES)}; all that know the recipe'
  )
  options = parser.parse_args()
  known = CASES if options.recipe == 'plain' else KNOW_EVERY_RECIPE
  options.cases = options.cases.split(';') if options.cases else list(known)
  if unknown := set(options.cases) - set(known):
    parser.error(f'--cases: {sorted(unknown)} with recipe {options.recipe}; known: {list(known)}')
  suffixes = ('.jpg', '.jpeg')
  found = pathlib.Path(options.pictures).rglob('*')
  files = sorted(str(path) for path in found if path.suffix.lower() in suffixes)
  # As many as a real set has: what a shuffle costs depends on it.
  files *= -(-options.at_least // len(files))
  watch_memory(options, files) if options.steps else compare(options, files)


if __name__ == '__main__':
  main()
