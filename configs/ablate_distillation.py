r"""DeiT's ablation of distillation (arXiv:2012.12877, tables 2 and 3) as one sweep, on the digits.

python -m vit_jax.main --config=configs/ablate_distillation.py --workdir=W

Two teachers are trained first, a convolutional one (BiT R26x1 on the digits at 16 x 16) and a
Transformer. Then students on 300 labelled pictures: without a teacher, soft and hard distillation
of one head, a distillation token with a head of its own, and two class tokens as the control
(`ablate_distillation.py:all`: each with both teachers, and the token softly taught; not run). The
table has the accuracy of both heads together and of each alone (the class embedding only, the
distillation embedding only); a picture, how near the two tokens are block by block.
After 200 steps nothing is told apart, three seeds each: no teacher 54.3 %, soft 56.0, hard 53.0,
the token 51.9 % (class embedding alone 52.9 %, distillation embedding alone 49.6 %), two class
tokens 51.3 %; teachers 98.6 and 98.1 %. The two tokens' similarity goes from 0.45 at the input to
0.96 after the last block (0.4.0; 30 min on two cores beside other work). Students are far from done
by then: --config.total_steps=800 --config.eval_every=800 is fairer, and not run.
"""

from vit_jax import defaults

SEEDS = 3
EVALUATORS = ('classification', 'similarity')


def get_config(which='few'):
  if which not in ('few', 'all'):
    raise ValueError(f'configs/ablate_distillation.py:{which}: choose few or all')
  config = defaults.get_config()
  config.run = 'sweep'
  config.data.rotate = 15.0
  config.data.scale = 0.15
  config.data.shear = 10.0
  config.data.translate = 0.05
  config.data.train_examples = 300
  config.model.variant = 'digits/2'
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 50
  config.optimizer.weight_decay = 0.3
  config.ema_decay = 0.99
  config.total_steps = 200
  config.batch_size = 128
  config.eval_every = 200
  config.checkpoint_every = 200
  return config


def sweep(which='few'):
  """The teachers, then every student with each seed."""
  teachers = [
    # All pictures; the convolutional one sees them enlarged, as its stem shrinks them by four.
    {
      'label': 'teacher: convolutional', 'data.train_examples': None, 'model.name': 'bit',
      'model.variant': 'R26x1', 'model.head': 'random', 'data.image_size': (16, 16),
      'optimizer.learning_rate': 1e-3, 'total_steps': 150, 'batch_size': 64, 'ema_decay': 0.0,
      'eval_every': 150, 'checkpoint_every': 150,
    },
    {
      'label': 'teacher: transformer', 'data.train_examples': None, 'total_steps': 800,
      'eval_every': 800, 'checkpoint_every': 800,
    },
  ]  # fmt: skip
  return teachers + [run | {'seed': seed} for run in students(which) for seed in range(SEEDS)]


def students(which):
  """What is compared; all see the same pictures for as many steps."""
  deit = {'model.name': 'deit', 'model.variant': 'digits/2'}
  pair = deit | {'model.variant': 'digits/2-distilled', 'evaluators': EVALUATORS}
  rows = [{'label': 'no teacher'} | deit]
  for teacher in ('convolutional', 'transformer'):
    taught = {'objective.name': 'distillation', 'objective.teacher': f'run:teacher: {teacher}'}
    soft = {'objective.distillation': 'soft', 'objective.teacher_share': 0.1}
    one = [
      {'label': f'soft, {teacher}'} | deit | taught | soft,
      {'label': f'hard, {teacher}'} | deit | taught,
    ]
    token = [
      {'label': f'distillation token, hard, {teacher}'} | pair | taught,
      {'label': f'distillation token, soft, {teacher}'} | pair | taught | soft,
    ]
    rows += one + token if which == 'all' else one * (teacher == 'convolutional') + token[:1]
  return rows + [{'label': 'two class tokens, no teacher'} | pair]
