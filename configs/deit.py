r"""DeiT on ImageNet (arXiv:2012.12877, table 9): `configs/deit.py:SIZE[-distilled][_384]`.

python -m vit_jax.main --config=configs/deit.py:S --config.data.data_dir=D --workdir=W
python -m vit_jax.main --config=configs/deit.py:S-distilled --config.objective.teacher=T ...
python -m vit_jax.main --config=configs/deit.py:B_384 --config.init_from=W_OF_B ...

SIZE is Ti, S or B. 300 epochs in batches of 1,024, 3 copies of each picture, RandAugment 9, mixup
0.8 or cutmix 1.0, erasing 0.25, label smoothing, drop path, no dropout, no clipping. `-distilled`
adds the distillation token and learns from T, any weights of ImageNet's classes (the paper: a
RegNetY-16GF; here a BiT or a ViT). `_384` fine-tunes for 30 epochs at 384 x 384 from `init_from`.

Not run at this scale. Published, top-1: Ti 72.2, S 79.8, B 81.8, B_384 83.1; distilled 74.5, 81.2,
83.4, B_384 84.5. Differences from the published code: warm-up from 0 instead of 1e-6, no ten last
epochs at the lowest rate, colour jitter off (as there, where RandAugment switches it off).
"""

from vit_jax import defaults

EXAMPLES = 1_281_167
SIZES = ('Ti', 'S', 'B')


def get_config(which='S'):
  variant, _, side = which.partition('_')
  size, _, distilled = variant.partition('-')
  if size not in SIZES or distilled not in ('', 'distilled') or side not in ('', '384'):
    raise ValueError(f'configs/deit.py:{which}: choose {", ".join(SIZES)}, with -distilled, _384')
  config = defaults.get_config()
  config.data = dict(
    name='tfds', dataset='imagenet2012', test_split='validation', image_size=(224, 224),
    fit='crop', resize='bicubic', mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    crop='random_resized', crop_area=(0.08, 1.0), crop_resize='bicubic', flip=True, repeats=3,
    randaugment=2, randaugment_magnitude=9.0, randaugment_std=0.5, randaugment_resize='bicubic',
  )  # fmt: skip
  config.model = dict(name='deit', variant=f'{size}/16' + '-distilled' * bool(distilled))
  config.model.drop_path = 0.1
  config.model.dtype = 'bfloat16'
  objective = dict(name='distillation') if distilled else dict(name='classification')
  config.objective = objective | dict(
    mixup=0.8, cutmix=1.0, switch_probability=0.5, erasing=0.25, label_smoothing=0.1
  )
  config.batch_size = 1024
  epoch = EXAMPLES // config.batch_size
  config.optimizer = dict(
    name='adamw', learning_rate=1e-3, weight_decay=0.05, clip_norm=0.0, warmup_steps=5 * epoch,
    final_fraction=0.01,
  )  # fmt: skip
  config.total_steps = 300 * epoch
  if side:
    higher(config)
  config.log_every = 100
  config.eval_every = 5 * epoch
  config.checkpoint_every = epoch
  return config


def higher(config):
  """Fine-tuning at 384 x 384, at one small rate."""
  config.data.image_size = (384, 384)
  config.resample = 'bicubic'
  config.batch_size = 512
  config.optimizer = dict(
    name='adamw', learning_rate=5e-6, schedule='constant', weight_decay=1e-8, clip_norm=0.0
  )
  config.total_steps = 30 * EXAMPLES // config.batch_size
