"""Every config key with its default, and the defaults of each named part of each section.

A section is the keyword arguments of what it builds, plus `name`, which chooses the part. Recipes
state differences: `from vit_jax import defaults`. In these tables a type stands for an optional
value of that type: a placeholder, None until somebody sets it.
"""

from typing import Any

from ml_collections import config_dict

from vit_jax.runtime.choices import check_choice

# A locked ConfigDict; its own annotations make a union of every key, which no checker can follow.
Config = Any
RUNS = ('train', 'explore', 'sweep')

_SCHEDULE = dict(
  learning_rate=1e-3,  # the peak, reached after warm-up
  # After warm-up: cosine, linear (both to final_fraction), rsqrt, steps or constant.
  schedule='cosine',
  drops=(),  # schedule='steps': a tenth of the rate after each of these steps
  timescale=10_000,  # schedule='rsqrt': peak / sqrt(1 + t / timescale), t steps after warm-up
  warmup_steps=0,  # linear, from 0
  cooldown_steps=0,  # the last so many steps, times a line from 1 to 0; of any schedule
  final_fraction=0.0,  # the last learning rate, as a fraction of the peak
  clip_norm=1.0,  # largest global norm of the gradient; 0: no clipping
  # What weight_decay means is `decay`: coupled: added to the gradient, before moments (L2, torch's
  # SGD and Adam); decoupled: times the learning rate and the factors of `multipliers` and
  # layer_decay (torch's AdamW); independent: times learning rate / peak alone (big_vision, whose
  # 1e-4 at a peak of 1e-3 is a decoupled 0.1).
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
  crop_padding=4,  # padded: border, pixels
  crop_border='black',  # padded: black, or reflect, the picture mirrored at its edge
  crop_from=(),  # squashed: (height, width) that a window is cut from; (): image_size * 8 / 7
  flip=False,  # mirror every second training picture, left to right
  # Training, after crop and flip: brightness, contrast and saturation change by factors of up to
  # 1 +- this, in random order; a grey picture's saturation does not. 0: none.
  colour_jitter=0.0,
  randaugment=0,  # training: operations a picture (DeiT: 2), after colour_jitter; 0: none
  randaugment_magnitude=9.0,  # 10 is the papers' strongest; AugReg's 15 and 20 need a larger max
  randaugment_std=0.5,  # standard deviation of the magnitude; inf: uniform, from 0 to magnitude
  randaugment_probability=0.5,  # that an operation which was drawn is applied
  randaugment_increasing=True,  # all operations grow stronger with the magnitude
  randaugment_max=10.0,  # magnitudes are clipped to 0..this after the noise
  randaugment_resize='random',  # of rotations, shears, shifts: random (bilinear or bicubic), or one
  rotate=0.0,  # random affine map of a training picture: largest angle, degrees
  scale=0.0,  # largest relative change of size, by axis
  shear=0.0,  # largest shear, degrees
  translate=0.0,  # largest shift, as a fraction of the side
  whole_epochs=False,  # end an epoch with a smaller batch instead of in the middle of one
  # Copies of a training picture near to each other, each changed in its own way
  # (arXiv:1902.05509; DeiT: 3).
  repeats=1,
  # How many of train are used, chosen by split_seed, of listed labels (digits, folder) by class.
  train_examples=int,
  # A duplicates.json of `vit_jax.explore.duplicates`, or a text file with a name a line: pictures
  # that are left out of train and validation, before train_examples counts.
  exclude=str,
  validation_fraction=0.0,  # taken from train by split_seed; chooses the best checkpoint
  split_seed=0,
  threads=int,  # that decode pictures; None: one a core
  # That make training pictures instead of the threads; None: beside a GPU or TPU one a core, at
  # most 16, where there are more than four and no number of threads is given; else 0. Not of a
  # script: each would run it again.
  processes=int,
)

_VIT = dict(
  # None, unless it says otherwise: as in the weights that the run starts from, else as noted.
  variant=str,  # size and patch side, 'B/16'; `python -m vit_jax.models` lists them
  width=int,  # these four replace the variant's own
  depth=int,
  num_heads=int,
  mlp_dim=int,
  # What the head reads, a name of READOUTS in models/readout.py, with words behind it as there:
  # mean+all+after; else class_token (of a distilled DeiT class_and_distillation, a head each).
  readout=str,
  patch_index=int,  # readout='patch': 1 (top left, else) to N (bottom right), row by row
  readout_weights=str,  # of the weighted mixes: free (else), or softmax
  class_token=bool,  # whether there is one, else True; the readouts of patches also work without
  registers=int,  # further learned tokens that only attention reads (arXiv:2309.16588), else 0
  pre_logits=int,  # width of a tanh layer before the head; None: no such layer
  head_bias=0.0,  # initial bias of the head, -10.0 for sigmoid losses with many classes
  dropout=0.0,
  attention_dropout=0.0,  # of the attention weights
  projection_dropout=float,  # of attention's output; None: as dropout
  drop_path=0.0,  # of the last block; earlier blocks linearly less
  qkv_bias=bool,  # else True
  qk_scale=float,  # else head width ** -0.5
  layer_scale=float,  # first factor of each branch of a block, learned (CaiT: 1e-4); else 0: none
  # Appendix D.4: learned (else), learned_2d (columns and rows apart), sinusoidal, sinusoidal_2d
  # (fixed), relative (learned keys by offset, in attention), none.
  positions=str,
  position_at=str,  # input (else), every block its own, or shared: the same before each block
  mlp=str,  # plain, or swiglu, whose gate and value have mlp_dim each; else as the variant's
  embedding_norm=bool,  # layer norm after the patch embedding, else False
  gelu=str,  # tanh (official, else), exact (torch), quick
  epsilon=float,  # of the layer norms, else 1e-6
  # plain; cudnn (GPU, bfloat16); pallas (TPU); or auto: the fused one wherever it can run.
  attention='auto',
  # What the backward pass computes again instead of keeping it: none; attention (its weights, in
  # the plain form); dots (all but matrix products); blocks (all: least memory, a third slower).
  remat='none',
  scan=False,  # one compiled block for all, run in a loop: compiles faster, takes a copy of weights
  dtype='float32',  # of the computation; parameters, softmax and loss stay float32
  initialisers='official',  # or torch: what its layers start with by default; or deit
)
_RESNET = dict(
  variant=str,  # depth x width factor, 'R50x1'
  head='zero',  # how the head starts: zero, or random
  standardise=str,  # None: as in the weights, else bit
  group_norm_epsilon=float,  # else 1e-5
  # Side of the first kernel: 7, in steps of 2 before a max-pool that does the same (else), or 3, in
  # steps of 1 without a pool, for pictures of 32 pixels.
  root_kernel=int,
  pool_padding=str,  # of that max-pool: zero (big_transfer), or infinite (big_vision)
  remat='none',  # or blocks: recompute units in the backward pass
  dtype='float32',
)
_CLASSIFICATION = dict(
  loss='softmax',  # or sigmoid
  label_smoothing=0.0,
  mixup=0.0,  # alpha of mixup's Beta distribution; 0: none
  cutmix=0.0,  # alpha of cutmix's (arXiv:1905.04899); 0: none
  mix_probability=1.0,  # that a batch is mixed at all
  switch_probability=0.5,  # with mixup and cutmix: that a mixed batch has cutmix
  erasing=0.0,  # probability that a rectangle of a picture becomes noise (arXiv:1708.04896)
  multi_label=False,  # data with any number of labels a picture; needs loss='sigmoid'
)
_PIXELS = dict(
  # Times the loss of labels, which is added to that of pixels; 0: no label is read. The paper
  # fine-tunes with 1.
  classification_weight=0.0,
)
_FROZEN = dict(
  layers='last',  # or all, or blocks from 1: '4,8,12'; '4+8': their features side by side
  # native: what the head reads (of inner blocks: by the model's own readout); or a readout without
  # parameters: class_token, mean, patch_3, max, ...
  readout='native',
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
      test_folder='test',  # 'val' for ImageNet's layout; empty: test_fraction of train
      test_fraction=0.2,  # where there is no test folder: taken from train by split_seed
      on_error='error',  # a file that cannot be read: error, or skip (count and names are logged)
      decode_below=5000,  # fewer files are all decoded once; of more, headers, unless on_error=skip
      crop='random_resized',
      flip=True,
    ),
    'checkpoint': dict(  # the data that config.init_from was trained on, as they were then
      threads=int,  # as above; who made those pictures then is of no account
      processes=int,
    ),
    'tfds': _PICTURES
    | dict(  # any TFDS set that is prepared as array_record
      dataset=str,  # its name, 'cifar10' or 'cifar10:3.0.2'
      data_dir=str,  # where TFDS sets are; None: ~/tensorflow_datasets
      train_split='train',  # slices work: 'train[:90%]'
      test_split='test',
      image_key='image',
      label_key='label',  # a class label, or a sequence of them: objective.multi_label
      crop='random_resized',
      flip=True,
    ),
    'vtab': _PICTURES
    | dict(  # a task of VTAB-1k (arXiv:1910.04867), of a TFDS set that is prepared as array_record
      task=str,  # a name of TASKS in data/vtab.py, 'cifar100'
      data_dir=str,  # where TFDS sets are; None: ~/tensorflow_datasets
      examples='1000',  # of training; 800: and the 200 others are the validation split
      crop=str,  # None, of these three: as the task's row says
      crop_from=(),
      flip=bool,
    ),
  },
  'model': {
    'vit': _VIT,
    'deit': _VIT  # arXiv:2012.12877; 'S/16', or 'S/16-distilled' with a distillation token
    | dict(
      average='logits',  # of the two heads, or of their probabilities
      initialisers='deit',  # normal of 0.02, the head too
    ),
    'hybrid': _VIT  # a ResNet's feature map instead of pixels
    | dict(
      standardise=str,  # formula of the ResNet's kernels: official, bit, timm
      group_norm_epsilon=float,  # official: 1e-6
    ),
    'axial': _VIT,  # row attention, then column attention (appendix D.6); no class token
    'swin': dict(  # arXiv:2103.14030; 'T/4'
      variant=str,
      window=int,  # side of a window, in tokens; else 7; published at 384 pixels: 12
      dropout=0.0,
      drop_path=0.0,  # of the last block; earlier blocks linearly less
      qkv_bias=bool,  # else True
      gelu=str,  # else exact
      epsilon=float,  # of the layer norms, else 1e-5
      attention_dropout=0.0,  # of the attention weights
      projection_dropout=0.0,  # of the output of attention
      remat='none',  # or attention, dots, blocks, as for a ViT
      dtype='float32',
      initialisers='deit',  # normal of 0.02; or official, torch
    ),
    'bit': _RESNET,
    'axial_resnet': _RESNET  # 3 x 3 convolutions become attention along columns and rows
    | dict(
      num_heads=8,
    ),
    'sasa': dict(  # a ResNet of local attention (arXiv:1906.05909)
      variant=str,  # R26, R38, R50, or digits; None, here and below: as in the weights, else noted
      # Stages whose 3 x 3 convolutions become attention: all (else), none, or some, from 1: '3,4'.
      attention_stages=str,
      stem=str,  # attention (in blocks of 4 x 4 pixels, else), or convolution
      mixtures=int,  # kernels that values of such a stem are mixtures of, else 4; 1: plain values
      kernel=int,  # side of a neighbourhood, odd, else 7
      num_heads=int,  # else 8
      positions=str,  # relative (learned by offset, else), absolute (waves at the input), none
      content=bool,  # whether attention compares features too, else True
      standardise=str,  # formula of the kernels of convolutions: official (else), bit, timm
      group_norm_epsilon=float,  # else 1e-6
      remat='none',  # or blocks: recompute bottlenecks in the backward pass
      dtype='float32',
    ),
    'cordonnier': dict(  # heads that attend by offset, as a convolution (arXiv:1911.03584)
      variant=str,  # size and patch side, 'cifar/2'; None, here and below: as in the weights, else
      width=int,  # these four replace the variant's own
      depth=int,
      num_heads=int,
      mlp_dim=int,
      # What a head attends by: isotropic (a centre and a spread, else), general (a spread of 2 x 2)
      # or learned (vectors of rows and columns).
      encoding=str,
      content=bool,  # whether queries and keys are compared too, else False
      heads=str,  # of each block, where pruning left fewer: '9,7,9'; else num_heads in all
      gelu=str,  # else exact
      epsilon=float,  # of the layer norms, else 1e-12
      dropout=0.1,
      attention_dropout=0.1,  # of the attention weights
      dtype='float32',
      initialisers='deit',  # normal of 0.02; or official, torch
    ),
    'igpt': dict(  # a sequence of pixels, each a colour of a palette (Image GPT); no class token
      variant=str,  # S, M, L, XL, or digits; None, here and below: as in the weights, else as noted
      width=int,  # these four replace the variant's own
      depth=int,
      num_heads=int,
      mlp_dim=int,
      clusters=int,  # colours of the palette, else 512
      # A .npy file of `clusters C` colours as the model sees them (OpenAI's: -1..1); None: as in
      # the weights that the run starts from, else k-means on the run's own training pictures.
      palette=str,
      causal=bool,  # else True: a pixel sees those before it alone; False: all (masked_pixels)
      gelu=str,  # else quick
      epsilon=float,  # of the norms, else 1e-5
      dropout=0.0,  # these three are ours; the paper's models have none
      attention_dropout=0.0,
      drop_path=0.0,
      attention='auto',  # these four as in a ViT
      remat='none',
      scan=False,
      dtype='float32',
    ),
  },
  'objective': {
    'classification': dict(
      **_CLASSIFICATION,
    ),
    'distillation': dict(  # arXiv:2012.12877; of a teacher that sees the same changed pictures
      **_CLASSIFICATION,
      teacher=str,  # a run, a weight file or an address; of the same classes
      distillation='hard',  # the teacher's class; or soft, its probabilities
      teacher_share=0.5,  # of the teacher's part in the loss; the paper's soft one has 0.1
      temperature=3.0,  # soft: of both; the published code's default is 1.0
      divergence='batch',  # soft: a mean over examples; or official, over examples and classes
    ),
    'masked_patches': dict(  # arXiv:2010.11929, B.1.2: hidden patches are predicted, without labels
      # Of a hidden patch: mean_colour (8 levels a channel: 512 classes), colours (of its 4 x 4
      # parts), or pixels (mean squared error).
      target='mean_colour',
      corruption=0.5,  # share of an image's patches; the paper also tried 0.15
    ),
    # iGPT's two, of a model with a palette: each pixel from those before it, or hidden ones.
    'autoregressive': dict(
      **_PIXELS,
    ),
    'masked_pixels': dict(
      masking=0.15,  # the chance of each pixel to be hidden
      **_PIXELS,
    ),
  },
  'optimizer': {
    'sgd': dict(
      **_SCHEDULE,
      decay='coupled',  # or decoupled, independent: see above
      weight_decay=0.0,
      momentum=0.9,
      nesterov=False,
      momentum_dtype='float32',  # bfloat16 halves its memory, as in the official code
    ),
    'adam': dict(
      **_SCHEDULE,
      decay='coupled',  # or decoupled, independent: see above
      weight_decay=0.0,
      b1=0.9,
      b2=0.999,
      epsilon=1e-8,
      momentum_dtype='float32',  # of the first moment
    ),
    'adamw': dict(
      **_SCHEDULE,
      decay='decoupled',  # or independent, coupled: see above
      weight_decay=1e-4,
      b1=0.9,
      b2=0.999,
      epsilon=1e-8,
      momentum_dtype='float32',
    ),
    'adafactor': dict(  # as big_vision's; its state is about 2 bytes a parameter, Adam's 8
      **_SCHEDULE,
      decay='independent',  # or decoupled, coupled: see above
      weight_decay=1e-4,
      momentum=0.9,  # of an average of updates, without bias correction; 0: none is kept
      momentum_dtype='bfloat16',
      decay_rate=0.8,  # the second moment of step t weighs what was before by 1 - t ** -decay_rate
      beta2_cap=0.999,  # and by no more than this
      min_size_to_factor=32,  # arrays with two axes of so many keep means of rows and columns alone
      clipping_threshold=0.0,  # largest root mean square of an array's update; 0: no clipping
      epsilon=1e-30,  # added to squared gradients
    ),
  },
  'explore': {
    'readouts': dict(
      # Of a frozen model: all, patches, class_token, patch_1, sum, sum_all, mean, mean_all, max,
      # weighted_add, weighted_concat (and _softmax), attention_pool, random_patch, shuffled_labels;
      # probes, the published ones: avgmax, gem, ep, aim, ... (vit_jax/explore/README.md). Words may
      # follow: +all (the prefix too), +before or +batch_before, +after or +batch (norms).
      readouts=('all',),
      # Further backbones beside config.init_from, runs or weight files: each is explored alike, and
      # a report says whether they agree.
      checkpoints=(),
      layers='last',  # or all, or blocks from 1: '4,8,12'; or mean:6, of the last six blocks
      token_norm='model',  # tokens pass the norm after the last block; none: they do not
      views=0,  # of each training picture, changed as config.data says; 0: as evaluation sees it
      seeds=5,  # from config.seed on: of heads and of the order of examples
      # For each readout chosen, with one of weight_decays, as `selection` says.
      learning_rates=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
      weight_decays=(0.0,),  # times the learning rate; of matrices, not of biases
      # On a part of train, then all of it trains; or as papers do: held_out_best (no refit), test,
      # test_epoch (vit_jax/explore/selection.py).
      selection='held_out',
      validation_fraction=0.2,  # that part: by config.seed, stratified
      optimizer='adam',  # or sgd (momentum 0.9), lars
      b2=0.999,  # adam's memory of squared gradients
      clip_norm=0.0,  # largest norm of each probe's gradient; 0: no clipping
      schedule='cosine',  # or constant
      warmup_epochs=0.0,  # in which the rate rises from 0, before the schedule
      decay_schedule='constant',  # of weight decay, or cosine to 0
      audit=True,  # also how optimistic other rules of choosing are; half as much work again
      epochs=10,
      batch_size=128,
      head='zero',  # or torch: uniform, as its Linear; normal_0.01, normal_0.02
      ridge=1024.0,  # of the least squares; big_vision's few-shot value
      cache=str,  # folder for tokens; None: WORKDIR/cache
      cache_gb=20.0,  # the most that they may take
      cache_dtype='float32',  # or bfloat16
    ),
    'planted': dict(
      # Of vit_jax/data/planted.py: what is planted, and the readouts that are asked beside patches.
      kinds=('code', 'digit_on_noise', 'digit_among_digits', 'joint'),
      readouts=(
        'mean',
        'max',
        'weighted_add',
        'weighted_add_softmax',
        'weighted_concat',
        'attention_pool',
      ),
      draws=20,  # of the places of the evidence, of codes and noise
      train_examples=2000,
      test_examples=500,
      side=4,  # pixels of a patch of the 16 x 16 canvas; tokens of noise lie on the same grid
      width=16,  # code, joint: of a token
      classes=2,  # code, joint
      strength=4.0,  # code, joint: the length of a code; that of the noise is about width ** 0.5
      learning_rate=1e-2,  # of Adam, cosine
      epochs=20,
      batch_size=128,
    ),
  },
  'evaluators': {
    'classification': dict(
      mistakes=24,  # pictures in the report: the most confident mistakes
      top=(5,),  # the report says how often the label is among so many classes
      bins=15,  # of confidence, for the calibration error and its diagram
      calibration=False,  # whether that error stands among the numbers of every evaluation
    ),
    'multi_label': dict(),  # of data with any number of labels a picture: mean average precision
    'similarity': dict(),  # of the first two tokens before the patches, by block
    'masked_patches': dict(  # how well that objective predicts, and what a blind guess would reach
      seed=0,  # of what is hidden, by the number of the picture
    ),
    'pixels': dict(  # how well a model of pixels tells them, and what a blind guess would reach
      seed=0,  # masked_pixels: of what is hidden, by the number of the picture
      masks=5,  # masked_pixels that also classifies: answers with so many masks, which vote
    ),
    # These three train classifiers on frozen features, of any layer and any readout.
    'fewshot': dict(
      shots=(1, 5, 10, 25),  # training examples a class
      seeds=3,  # choices of examples; the accuracy is a mean over them
      ridges=(1024.0,),  # several: 10 further training examples a class choose one
      **_FROZEN,
    ),
    'knn': dict(
      neighbours=(1, 5, 10, 20),
      temperatures=(0.07,),  # of the votes exp(similarity / temperature); 0: each counts once
      **_FROZEN,
    ),
    'linear': dict(
      solver='lbfgs',  # to the optimum; or sgd
      strengths=(1e-4, 1e-3, 1e-2, 1e-1, 1.0),  # lbfgs: C, the inverse of the penalty
      learning_rates=(1e-4, 1e-3, 1e-2, 1e-1),  # sgd
      held_out=0.2,  # share of the training examples that chooses among them
      standardise=True,  # features by their mean and deviation over the training examples
      epochs=10,  # sgd
      batch_size=128,  # sgd
      seed=0,
      **_FROZEN,
    ),
    'real': dict(  # accuracy where any of several classes is right: ImageNet ReaL, ObjectNet
      labels=str,  # a JSON file: a list by file number, or an object by file name or class
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
  # Of an exponential moving average of the weights, which is then evaluated. No bias correction: it
  # starts as the weights of step ema_start, which t steps later count ema_decay ** t in it.
  config.ema_decay = 0.0
  config.ema_start = 0  # until this step the average equals the weights
  # True: the decay is at most (1 + t) / (10 + t), t steps after ema_start. With 0.9999, 100 steps
  # later the first weights count 2e-12 and not 0.99: the average spans about a tenth of t.
  config.ema_warmup = False
  config.total_steps = 1000
  config.batch_size = 128  # of all devices together
  config.accumulation_steps = 1  # parts that a batch is cut into, to save memory
  # How many compute; None: all, but on a CPU one a core where a step is large, else one.
  config.devices = config_dict.placeholder(int)
  config.fsdp = 1  # devices over which the state is sharded; the rest replicate it
  config.shard_optimizer = False  # cut the optimizer's state over all devices (ZeRO-1), by fsdp too
  config.log_every = 50  # these three in steps; 0: never (the last step is always saved)
  config.eval_every = 200
  config.checkpoint_every = 200
  config.keep_checkpoints = 3  # the newest; the best is kept beside them
  config.evaluators = ('classification',)  # what is computed when evaluation is due
  # max:NAME or min:NAME, a number of an evaluator: the checkpoint that is kept beside the newest,
  # exported and used. None: max:validation/accuracy where there is a validation split, else none.
  config.best = config_dict.placeholder(str)
  # What a recipe expects, ((step, 'test/accuracy', low, high),): a number of an evaluator at its
  # first evaluation from that step on. Outside of the band the run warns, and goes on.
  config.bands = ()
  config.evaluation = evaluation(config.evaluators)
  config.explore = part('explore', 'readouts')
  config.lock()
  return config


# What may differ from the config that a workdir was started with: how long, how often, and where
# and how it is computed.
MAY_CHANGE = (
  'platform',
  'devices',
  'fsdp',
  'shard_optimizer',
  'accumulation_steps',
  'total_steps',
  'log_every',
  'eval_every',
  'checkpoint_every',
  'keep_checkpoints',
  'bands',
  'evaluation.batch_size',
  'evaluation.cache',
  'evaluation.cache_gb',
  'model.attention',
  'model.dtype',
  'model.remat',
  'model.scan',
  'data.threads',
  'data.processes',
  'explore.cache',
  'explore.cache_gb',
  'explore.audit',
)


def part(section: str, name: str) -> Config:
  """The defaults of the part `name` of a section.

  Raises:
    ValueError: no such part; the message has the choices and the nearest spelling.
  """
  key = f'config.{section}' + ('' if section == 'evaluators' else '.name')
  check_choice(key, name, PARTS[section])
  values = config_dict.ConfigDict({} if section == 'evaluators' else {'name': name})
  for key, value in PARTS[section][name].items():
    values[key] = config_dict.placeholder(value) if isinstance(value, type) else value
  return values


def evaluation(evaluators: tuple[str, ...]) -> Config:
  """What all evaluators share, and a section for each by its name."""
  shared = config_dict.ConfigDict({
    'batch_size': 256,  # of all devices together; the last batch is padded, so any size is exact
    'cache': config_dict.placeholder(str),  # folder for features in reports; None: WORKDIR/cache
    'cache_gb': 20.0,  # the most that they may take
  })  # fmt: skip
  for name in evaluators:
    shared[name] = part('evaluators', name)
  return shared


def complete(config: Config, chosen: dict[str, Any]) -> Config:
  """Fills each section from its part's defaults, so that every key can be overridden.

  Args:
    config: what a recipe's `get_config` returned.
    chosen: what replaces the recipe's choice of parts, such as `{'optimizer': 'sgd'}`, or
      `{'evaluators': ('classification',)}`; a section that changes its part keeps nothing of the
      old one.

  Raises:
    ValueError: an unknown section, part or key, with the nearest spelling.
  """
  known = get_config()
  for key in config:
    check_choice('config key', key, list(known))
  given = (chosen.get('evaluators'), config.get('evaluators'), known.evaluators)
  evaluators = next(names for names in given if names is not None)
  with known.unlocked():
    for key in known:
      if key == 'evaluators':
        known[key] = tuple(evaluators)
      elif key == 'evaluation':
        asked = {name: x for name, x in (config.get(key) or {}).items() if name in evaluators
                 or name not in PARTS['evaluators']}  # fmt: skip
        known[key] = fill(evaluation(evaluators), asked, 'config.evaluation')
      elif key in PARTS:
        given = config.get(key) or {}
        before = given.get('name') or known[key].name
        name = chosen.get(key) or before
        same = given if name == given.get('name', name) else {}
        known[key] = fill(part(key, name), same, f'config.{key} ({name})')
      elif key in config:
        known[key] = config[key]
    if chosen.get('evaluators') and tuple(evaluators) != tuple(config.get('evaluators') or ()):
      known.bands = ()  # What the recipe expects are numbers of its own evaluators.
  return known


def fill(section: Config, given: Any, title: str) -> Config:
  """`section` with the values that are given, each key checked."""
  for key, value in given.items():
    if isinstance(section.get(key), config_dict.ConfigDict):
      fill(section[key], value, f'{title}.{key}')
    else:
      check_choice(f'key of {title}', key, list(section))
      section[key] = value
  return section


def check_key(config: Config, key: str) -> None:
  """Raises a ValueError with the nearest spelling unless the dotted `key` exists."""
  check_choice('config key', key, sorted(flatten(config.to_dict())))


def mixes(config: Config) -> bool:
  """Whether pictures are mixed with others of their batch."""
  return any(config.objective.get(key) for key in ('mixup', 'cutmix'))


def check_numbers(config: Config) -> None:
  """Raises a ValueError for counts and shares that cannot be."""
  for key in ('total_steps', 'batch_size', 'accumulation_steps'):
    if config[key] < 1:
      raise ValueError(f'config.{key}={config[key]} must be at least 1')
  if not 0 <= config.seed < 2**32:
    raise ValueError(f'config.seed={config.seed} must be in 0..2**32 - 1')
  if mixes(config) and config.batch_size // config.accumulation_steps < 2:
    raise ValueError(
      f'config.batch_size={config.batch_size} in {config.accumulation_steps} parts '
      '(config.accumulation_steps) leaves no second picture to mix one with: take larger parts, or '
      'set config.objective.mixup and cutmix to 0'
    )
  for key in ('log_every', 'eval_every', 'checkpoint_every'):
    if config[key] < 0:
      raise ValueError(f'config.{key}={config[key]} must be at least 0 (0: never)')
  if not 0 <= config.ema_decay < 1:
    raise ValueError(f'config.ema_decay={config.ema_decay} must be in [0, 1)')
  if config.ema_start < 0:
    raise ValueError(f'config.ema_start={config.ema_start} must be at least 0, a step')
  for key in ('ema_start', 'ema_warmup'):
    if config[key] and not config.ema_decay:
      raise ValueError(
        f'config.{key}={config[key]} does nothing without an average; set config.ema_decay, 0.9999 '
        'say, or leave it out'
      )


def flatten(content: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'a': {'b': 1}} -> {'a.b': 1}; what is empty stays as it is."""
  flat: dict[str, Any] = {}
  for key, value in content.items():
    inner = isinstance(value, dict) and value
    flat |= flatten(value, f'{prefix}{key}.') if inner else {prefix + key: value}
  return flat


def upgrade(content: dict[str, Any]) -> dict[str, Any]:
  """A `config.json` of this version or an earlier one, with every key of this one.

  Raises:
    ValueError: it has keys of a later version.
  """
  old = tuples(content)
  old.get('evaluation', {}).pop('name', None)  # 0.1.0: of the one evaluator.
  remat = old.get('model', {}).get('remat')
  if isinstance(remat, bool):  # Before 0.3.0.
    old['model']['remat'] = 'blocks' if remat else 'none'
  return complete(config_dict.ConfigDict(old), {}).to_dict()


def tuples(value: Any) -> Any:
  """JSON's lists as the tuples that they were."""
  if isinstance(value, dict):
    return {key: tuples(x) for key, x in value.items()}
  return tuple(map(tuples, value)) if isinstance(value, list) else value
