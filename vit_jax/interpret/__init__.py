"""Pictures and numbers from inside a checkpoint; a new one is a function and one line here.

Each takes (predictor, image `H W C` uint8 as the model sees it, options) and returns a Matplotlib
figure and numbers that go into JSON.
"""

from collections.abc import Callable

from vit_jax.interpret import feature_maps, patches, readouts

PICTURES: dict[str, Callable] = {
  'patches': patches.patches,
  'flattening': patches.flattening,
  'feature_maps': feature_maps.feature_maps,
  'readouts': readouts.readouts,
}
