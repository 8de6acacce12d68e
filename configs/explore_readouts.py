r"""Which token, or which mix, should a classifier read? `configs/explore_readouts.py[:PRESET]`.

python -m vit_jax.main --config=configs/explore_readouts.py --config.init_from=C --workdir=W

C is a run or any weight file that the project reads. The data are those of the checkpoint; others:
--config.data.name=folder --config.data.path=PATH. Every patch, every mix, 5 seeds; the report is
W/reports/readouts.html. 75 s for 77 readouts of the digits at 8 x 8 patches on two CPU cores
(0.1.0), 41 min for 81 of all of CIFAR-10 on two busy ones, without the audit (1.1.0).

`study` is the protocol of the token-readout study: Adam at 1e-3, batches of 32, 10 epochs, heads
that start as torch's. For its ViT-B/16 with 3 classes that trains 2,307 parameters for the class
token. It reports one run on 75 pictures; here there are 5 seeds. With random B/16 weights on its
pictures: 5 min 31 s on two busy CPU cores. With real ones: not run.

The others are published protocols, with their readouts; `:PRESET,theirs` also chooses as they do,
`:PRESET` as we do, on a fifth of train:

  dinov2_linear  52 heads: class tokens of the last 1 or 4 blocks, with the mean or not; SGD.
                 Theirs: the best head on the test examples after the last step.
  dinov3_linear  the class token with the mean of the patches; SGD. Theirs: as DINOv2's.
  capi           CAPI's attentive probe; AdamW at 10 rates and 3 decays. Theirs: the best on a tenth
                 of train, tested as it is, without training on that tenth.
  ep             efficient probing and a batch norm; LARS. Theirs: the best epoch on test.
  aim            AIM's attentive probe on the mean of the last 6 blocks without the last norm,
                 between batch norms, by the protocol of `ep`: its own is not published.
  vjepa          V-JEPA's attentive pooler; AdamW. Theirs is not told: nothing is chosen in either.
  mae_linear     the class token and a batch norm; LARS. Theirs: the best epoch on test.

What else differs from theirs: pictures are not changed in training unless --config.explore.views=N
keeps N changed views of each; batch norm sees a batch, or the part of it that memory allows, where
theirs saw that of one GPU; V-JEPA's decay falls to 0, not 1e-6. LARS's rates
are for batches of 4,096 (16,384 with `mae_linear`).

  logreg         logistic regression on what the head reads: 45 strengths, features as they are.
                 Theirs chooses on a tenth of train too: it is ours, which holds classes even.
  knn            nearest neighbours, k of 10, 20, 100, 200, temperature 0.07. Theirs: reads the best
                 k off the test accuracies, which are all told; ours, `knn`, chooses on train.
  fewshot        big_vision's least squares, 1, 5, 10, 25 examples a class, ridge 1,024: no choice.

These three are evaluators, run by --mode=evaluate added to the command; `theirs` changes nothing.
On the digits at 8 x 8 patches: vit_jax/explore/README.md. With published weights: not run.
"""

from vit_jax import defaults

# By preset: what `theirs` chooses by, and what differs from the keys of config.explore.
PROBES = {
  'dinov2_linear': ('test', dict(
    readouts=('class_token', 'class_and_mean', 'class_of_4', 'class_of_4_and_mean'),
    optimizer='sgd', batch_size=1024, head='normal_0.01',
    # Theirs times batch / 256: {1, 2, 5} x 1e-5 ... 1e-2, and 0.1.
    learning_rates=(*(4 * x * 10.0**-e for e in (5, 4, 3, 2) for x in (1, 2, 5)), 0.4),
  )),
  'dinov3_linear': ('test', dict(
    readouts=('class_and_mean',), optimizer='sgd', batch_size=1024, head='normal_0.01',
    learning_rates=(*(4 * x * 10.0**-e for e in (5, 4, 3, 2) for x in (1, 2, 5)), 0.4),
  )),
  'capi': ('held_out_best', dict(
    readouts=('capi',), batch_size=1024, head='normal_0.02', b2=0.95, warmup_epochs=1.0,
    learning_rates=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2),
    weight_decays=(5e-4, 1e-3, 5e-2),
  )),
  'ep': ('test_epoch', dict(
    readouts=('ep+batch', 'class_token+batch'), optimizer='lars', batch_size=4096,
    learning_rates=(1.6,), epochs=90, warmup_epochs=10.0, head='torch',
  )),
  'aim': ('test_epoch', dict(
    readouts=('aim+batch_before+batch',), layers='mean:6', token_norm='none', optimizer='lars',
    batch_size=4096, learning_rates=(1.6,), epochs=90, warmup_epochs=10.0, head='torch',
  )),
  'vjepa': ('held_out', dict(
    readouts=('vjepa',), batch_size=1024, learning_rates=(1e-3,), weight_decays=(1e-3,),
    decay_schedule='cosine', clip_norm=1.0, epochs=20, head='normal_0.02',
  )),
  'mae_linear': ('test_epoch', dict(
    readouts=('class_token+batch',), optimizer='lars', batch_size=16384, learning_rates=(6.4,),
    epochs=90, warmup_epochs=10.0, head='normal_0.01',
  )),
}  # fmt: skip
# By preset: the keys of its evaluator.
EVALUATORS = {
  'logreg': ('linear', dict(
    strengths=tuple(10 ** (-6 + 0.25 * i) for i in range(45)), held_out=0.1, standardise=False,
  )),
  'knn': ('knn', dict(neighbours=(10, 20, 100, 200), temperatures=(0.07,))),
  'fewshot': ('fewshot', dict(shots=(1, 5, 10, 25), seeds=3, ridges=(1024.0,))),
}  # fmt: skip
STUDY = dict(learning_rates=(1e-3,), schedule='constant', batch_size=32, head='torch')
PRESETS = ('fair', 'study', *PROBES, *EVALUATORS)


def get_config(words='fair'):
  preset, _, selection = words.partition(',')
  if preset not in PRESETS or selection not in ('', 'ours', 'theirs'):
    raise ValueError(
      f'configs/explore_readouts.py:{words}: choose {", ".join(PRESETS)}; with ,ours or ,theirs'
    )
  config = defaults.get_config()
  config.data = dict(name='checkpoint')
  config.evaluation.batch_size = 64
  if preset in EVALUATORS:
    name, keys = EVALUATORS[preset]
    config.evaluators = (name,)
    config.evaluation = {'batch_size': 64, name: keys}
    return config
  config.run = 'explore'
  theirs, keys = PROBES.get(preset, ('held_out', STUDY if preset == 'study' else {}))
  if selection == 'theirs' and theirs == 'held_out_best':
    keys = keys | dict(validation_fraction=0.1)
  config.explore.update(keys)
  if selection == 'theirs':
    config.explore.selection = theirs
  return config
