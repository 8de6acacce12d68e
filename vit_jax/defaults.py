"""Every config key with its default, and the defaults of each named part of each section.

A section is the keyword arguments of what it builds, plus `name`, which chooses the part. Recipes
state differences: `from vit_jax import defaults`. In these tables a type stands for an optional
value of that type: a placeholder, None until somebody sets it.
"""

from typing import Any

from ml_collections import config_dict

from vit_jax.choices import choose

# A locked ConfigDict; its own annotations make a union of every key, which no checker can follow.
Config = Any
RUNS = ('train', 'explore', 'sweep')

_SCHEDULE = dict(
  learning_rate=1e-3,  # the peak, reached after warm-up
  schedule='cosine',  # after warm-up: cosine, linear (both to final_fraction), steps or constant
  drops=(),  # schedule='steps': a tenth of the rate after each of these steps
  warmup_steps=0,  # linear, from 0
  final_fraction=0.0,  # the last learning rate, as a fraction of the peak
  clip_norm=1.0,  # largest global norm of the gradient; 0: no clipping
  decay_pattern='.*/kernel',  # parameters that decay: a regular expression for the whole name
  # (pattern, factor) pairs; the first that matches a parameter's whole name multiplies its learning
  # rate and 0 freezes it: (('head/.*', 1.0), ('.*', 0.0)) trains the head alone.
  multipliers=(),
  train='all',  # or head (readout and pre-logits too), or last:N, with the last N blocks
  layer_decay=1.0,  # factor of the learning rate from one block to the one below; the head has 1
)

_PICTURES = dict(
  image_size=(224, 224),  # (height, width) that the model sees
  channels=3,  # 1 grey, 3 RGB, 4 RGBA; other numbers for pictures from arrays (.npy)
  fit='squash',  # evaluation and prediction: squash the whole picture, or crop its centre
  resize_small=int,  # fit='crop': the shorter side before the crop; None: image_size / 0.875
  resize='bilinear',  # or nearest, bicubic, lanczos; where a picture has another size
  # Of pixel values in 0..1, one number or one a channel: (x - mean) / std. (): as the weights that
  # the run starts from, else (0.5,), which gives -1..1. ImageNet's: (0.485, 0.456, 0.406) and
  # (0.229, 0.224, 0.225).
  mean=(),
  std=(),
  crop='none',  # training: none (as evaluation), random_resized, padded, squashed
  crop_area=(0.05, 1.0),  # random_resized: smallest and largest share of the picture's area
  crop_ratio=(3 / 4, 4 / 3),  # random_resized: smallest and largest width over height
  crop_resize='linear',  # random_resized: the fastest filter; or any of those of `resize`
  crop_padding=4,  # padded: black border, pixels
  crop_from=(),  # squashed: (height, width) that a window is cut from; (): image_size * 8 / 7
  flip=False,  # mirror every second training picture, left to right
  rotate=0.0,  # random affine map of a training picture: largest angle, degrees
  scale=0.0,  # largest relative change of size, by axis
  shear=0.0,  # largest shear, degrees
  translate=0.0,  # largest shift, as a fraction of the side
  whole_epochs=False,  # end an epoch with a smaller batch instead of in the middle of one
  validation_fraction=0.0,  # taken from train by split_seed; chooses the best checkpoint
  split_seed=0,
  threads=int,  # that decode pictures; None: one a core
)

_VIT = dict(
  # None, here and below: as in the weights that the run starts from, else as the official code.
  variant=str,  # size and patch side, 'B/16'; `python -m vit_jax.models` lists them
  width=int,  # these four replace the variant's own
  depth=int,
  num_heads=int,
  mlp_dim=int,
  readout='class_token',  # class_token patch sum mean max sum_all mean_all
  #                         weighted_add weighted_concat attention_pool none
  patch_index=1,  # readout='patch': 1 (top left) to N (bottom right), row by row
  readout_weights='free',  # of the weighted mixes: free, or softmax
  class_token=True,  # whether there is one; the readouts of patches also work without
  pre_logits=int,  # width of a tanh layer before the head
  head_bias=0.0,  # initial bias of the head, -10.0 for sigmoid losses with many classes
  dropout=0.0,
  attention_dropout=0.0,  # of the attention weights
  projection_dropout=float,  # of attention's output; None: as dropout
  drop_path=0.0,  # of the last block; earlier blocks linearly less
  qkv_bias=True,
  qk_scale=float,  # None: head width ** -0.5
  embedding_norm=False,  # layer norm after the patch embedding
  gelu=str,  # tanh (official), exact (torch), quick
  epsilon=float,  # of the layer norms; official: 1e-6
  attention='auto',  # plain, cudnn (GPU, bfloat16), or auto: cudnn wherever it can run
  remat=False,  # recompute blocks in the backward pass: less memory, about a third slower
  dtype='float32',  # of the computation; parameters, softmax and loss stay float32
  initialisers='official',  # or torch: what its layers start with by default
)
PARTS = {
  'data': {
    'digits': _PICTURES
    | dict(  # 1,797 real handwritten digits, 8 x 8, that scikit-learn ships
      image_size=(8, 8),
      channels=1,
      test_fraction=0.2,  # stratified by class: 360 of the 1,797
    ),
    'folder': _PICTURES
    | dict(  # path/train/CLASS/PICTURE and path/test/CLASS/PICTURE, or path/CLASS/PICTURE
      path=str,  # a folder, an archive of one, or an http(s) address of an archive
      sha256=str,  # of the archive; an address needs it
      test_folder='test',  # 'val' for ImageNet's layout
      test_fraction=0.2,  # where there is no test folder: taken from train by split_seed
      on_error='error',  # a file that cannot be read: error, or skip (count and names are logged)
      decode_below=5000,  # fewer files than this are all decoded once; of more, headers are read
      crop='random_resized',
      flip=True,
    ),
    'checkpoint': dict(),  # the data that config.init_from was trained on, as they were then
    'tfds': _PICTURES
    | dict(  # any TFDS set that is prepared as array_record
      dataset=str,  # its name, 'cifar10' or 'cifar10:3.0.2'
      data_dir=str,  # where TFDS sets are; None: ~/tensorflow_datasets
      train_split='train',  # slices work: 'train[:90%]'
      test_split='test',
      image_key='image',
      label_key='label',
      crop='random_resized',
      flip=True,
    ),
  },
  'model': {
    'vit': _VIT,
    'hybrid': _VIT  # a ResNet's feature map instead of pixels
    | dict(
      standardise=str,  # formula of the ResNet's kernels: official, bit, timm
      group_norm_epsilon=float,  # official: 1e-6
    ),
    'bit': dict(
      variant=str,  # depth x width factor, 'R50x1'
      head='zero',  # how the head starts: zero, or random
      standardise=str,  # None: as in the weights, else bit
      group_norm_epsilon=float,  # else 1e-5
      pool_padding=str,  # of the root's max-pool: zero (big_transfer), or infinite (big_vision)
      remat=False,
      dtype='float32',
    ),
  },
  'objective': {
    'classification': dict(
      loss='softmax',  # or sigmoid
      label_smoothing=0.0,
      mixup=0.0,  # alpha of mixup's Beta distribution; 0: none
    ),
  },
  'optimizer': {
    'sgd': dict(
      **_SCHEDULE,
      weight_decay=0.0,  # coupled: added to the gradient
      momentum=0.9,
      nesterov=False,
      momentum_dtype='float32',  # bfloat16 halves its memory, as in the official code
    ),
    'adam': dict(
      **_SCHEDULE,
      weight_decay=0.0,  # coupled (L2): added to the gradient, before its moments
      b1=0.9,
      b2=0.999,
      epsilon=1e-8,
      momentum_dtype='float32',  # of the first moment
    ),
    'adamw': dict(
      **_SCHEDULE,
      weight_decay=1e-4,  # decoupled, multiplied by the learning rate
      b1=0.9,
      b2=0.999,
      epsilon=1e-8,
      momentum_dtype='float32',
    ),
  },
  'explore': {
    'readouts': dict(
      # Of a frozen model: all, patches, class_token, patch_1, sum, sum_all, mean, mean_all, max,
      # weighted_add, weighted_concat (and _softmax), attention_pool, random_patch, shuffled_labels.
      readouts=('all',),
      layers='last',  # or all, or blocks from 1: '4,8,12'
      views=0,  # of each training picture, changed as config.data says; 0: as evaluation sees it
      seeds=5,  # from config.seed on: of heads and of the order of examples
      # Of Adam; for each readout chosen on a part of the training examples.
      learning_rates=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
      validation_fraction=0.2,  # that part: by config.seed, stratified
      schedule='cosine',  # or constant
      epochs=10,
      batch_size=128,
      head='zero',  # or torch: uniform, as its Linear
      ridge=1024.0,  # of the least squares; big_vision's few-shot value
      cache=str,  # folder for tokens; None: WORKDIR/cache
      cache_gb=20.0,  # the most that they may take
      cache_dtype='float32',  # or bfloat16
    ),
  },
  'evaluation': {
    'classification': dict(
      batch_size=256,  # of all devices together; the last batch is padded, so any size is exact
    ),
  },
}


def get_config() -> Config:
  """All keys at their defaults, in the order of the program."""
  config = config_dict.ConfigDict()
  config.run = 'train'  # train, explore or sweep
  config.platform = config_dict.placeholder(str)  # cpu, gpu or tpu: refuse to run on another
  config.seed = 0  # of initial weights, data order, augmentation and dropout
  config.data = part('data', 'digits')
  config.model = part('model', 'vit')
  config.objective = part('objective', 'classification')
  config.optimizer = part('optimizer', 'adamw')
  config.init_from = config_dict.placeholder(str)  # a run's folder or a weight file to start from
  config.resample = 'official'  # its positions for another grid: official, bilinear, bicubic
  config.ema_decay = 0.0  # of an exponential moving average of the weights, which is then evaluated
  config.total_steps = 1000
  config.batch_size = 128  # of all devices together
  config.accumulation_steps = 1  # parts that a batch is cut into, to save memory
  config.fsdp = 1  # devices over which the state is sharded; the rest replicate it
  config.log_every = 50  # these three in steps; 0: never (the last step is always saved)
  config.eval_every = 200
  config.checkpoint_every = 200
  config.keep_checkpoints = 3  # the newest; the best is kept beside them
  config.evaluation = part('evaluation', 'classification')
  config.explore = part('explore', 'readouts')
  config.lock()
  return config


# What may differ from the config that a workdir was started with.
MAY_CHANGE = (
  'platform',
  'fsdp',
  'total_steps',
  'log_every',
  'eval_every',
  'checkpoint_every',
  'keep_checkpoints',
  'evaluation.batch_size',
  'data.threads',
  'explore.cache',
  'explore.cache_gb',
)


def part(section: str, name: str) -> Config:
  """The defaults of the part `name` of a section.

  Raises:
    ValueError: no such part; the message has the choices and the nearest spelling.
  """
  choose(f'config.{section}.name', name, PARTS[section])
  values = config_dict.ConfigDict({'name': name})
  for key, value in PARTS[section][name].items():
    values[key] = config_dict.placeholder(value) if isinstance(value, type) else value
  return values


def complete(config: Config, names: dict[str, str]) -> Config:
  """Fills each section from its part's defaults, so that every key can be overridden.

  Args:
    config: what a recipe's `get_config` returned.
    names: sections whose part is replaced, such as `{'optimizer': 'sgd'}`; a section that changes
      its part keeps nothing of the old one.

  Raises:
    ValueError: an unknown section, part or key, with the nearest spelling.
  """
  known = get_config()
  for key in config:
    choose('config key', key, list(known))
  for key in known:
    if key not in PARTS:
      known[key] = config.get(key)
      continue
    given = config.get(key) or {}
    name: str = names.get(key) or given.get('name') or known[key].name
    with known.unlocked():
      known[key] = part(key, name)
    if name == given.get('name', name):
      for field, value in given.items():
        choose(f'key of config.{key} ({name})', field, list(known[key]))
        known[key][field] = value
  return known


def check_key(config: Config, key: str) -> None:
  """Raises a ValueError with the nearest spelling unless the dotted `key` exists."""
  names = {
    f'{section}.{field}' if isinstance(values, config_dict.ConfigDict) else section
    for section, values in config.items()
    for field in (values if isinstance(values, config_dict.ConfigDict) else [''])
  }
  choose('config key', key, sorted(names))
