"""The 19 tasks of VTAB-1k (arXiv:1910.04867): which examples, and what their labels are made of.

Hyper-parameters are chosen on 200 of 1,000 training examples, after training on the other 800; then
all are trained on. Slices and labels are as in the published code; how pictures are cropped and
flipped is as in Scenic's settings for ViT-G, as the ViT paper does not say.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

Example = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
  """A row of TASKS.

  Attributes:
    group: natural, specialized or structured.
    dataset: the name of a TFDS set, with its config.
    version: the first number of the version whose slices these are.
    train, validation, test: slices of 800, of 200, and what is tested on.
    label: the key of the label, or a function of an example that returns its class.
    crop: whether training cuts out a random window.
    flip: whether training mirrors every second picture.
    names: of the classes where `label` is a function.
    scale: what pixel values are multiplied by.
    manual: what has to be fetched by hand before the set can be prepared.
  """

  group: str
  dataset: str
  version: int
  train: str
  validation: str
  test: str
  num_classes: int
  label: str | Callable[[Example], int] = 'label'
  crop: bool = True
  flip: bool = True
  names: tuple[str, ...] = ()
  scale: int = 1
  manual: str = ''


def sixteenth(example: Example, key: str, count: int) -> int:
  """dSprites: which of 16 bins the value of a key lies in, that has `count` of them."""
  return int(example[key]) * 16 // count


def level(value: float, limits: Sequence[float]) -> int:
  """The last of rising limits that lies below a value, counted from 0."""
  return sum(limit < value for limit in limits) - 1


def count_objects(example: Example) -> int:
  """CLEVR: 3 to 10 objects."""
  return len(example['objects']['pixel_coords']) - 3


def closest_object(example: Example) -> int:
  """CLEVR: how far the nearest object is, in steps of about half a unit."""
  depths = np.asarray(example['objects']['pixel_coords'])[:, 2]
  return level(float(depths.min()), CLEVR_LIMITS)


def closest_vehicle(example: Example) -> int:
  """KITTI: how far the nearest car, van or truck is, in metres; the last class: there is none."""
  kinds, places = (np.asarray(example['objects'][key]) for key in ('type', 'location'))
  return level(min([1000.0, *places[kinds < 3, 2].tolist()]), KITTI_LIMITS)


CLEVR_LIMITS = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_LIMITS = (-100.0, 8.0, 20.0, 999.0)
X_POSITION = functools.partial(sixteenth, key='label_x_position', count=32)
ORIENTATION = functools.partial(sixteenth, key='label_orientation', count=40)
SIXTEEN = tuple(f'sixteenth {i}' for i in range(16))
CLEVR = ('structured', 'clevr', 3, 'train[:800]', 'train[63000:63200]', 'validation')
DSPRITES = (
  'structured', 'dsprites', 2, 'train[:800]', 'train[589824:590024]', 'train[663552:]', 16
)  # fmt: skip
NORB = ('structured', 'smallnorb', 2, 'train[:800]', 'test[:200]', 'test[50%:]')
OTHER = ('train[:800]', 'validation[:200]', 'test')
DISTANCES = ('to 8', '8 to 8.5', '8.5 to 9', '9 to 9.5', '9.5 to 10', 'above 10')
VEHICLES = ('to 8 m', '8 to 20 m', 'above 20 m', 'no vehicle')
KAGGLE = (
  'train.zip, test.zip and the labels of kaggle.com/c/diabetic-retinopathy-detection, unpacked'
)
RESISC = 'NWPU-RESISC45.rar, which its authors share on OneDrive'
TASKS: dict[str, Task] = {
  'caltech101': Task('natural', 'caltech101', 3, 'train[:800]', 'train[2754:2954]', 'test', 102),
  'cifar100': Task('natural', 'cifar100', 3, 'train[:800]', 'train[45000:45200]', 'test', 100),
  'dtd': Task('natural', 'dtd', 3, *OTHER, 47),
  'flowers102': Task('natural', 'oxford_flowers102', 2, *OTHER, 102),
  'pets': Task('natural', 'oxford_iiit_pet', 3, 'train[:800]', 'train[2944:3144]', 'test', 37),
  'sun397': Task('natural', 'sun397/tfds', 4, *OTHER, 397),
  'svhn': Task('natural', 'svhn_cropped', 3, 'train[:800]', 'train[65931:66131]', 'test', 10),
  'camelyon': Task('specialized', 'patch_camelyon', 2, *OTHER, 2),
  'eurosat': Task(
    'specialized', 'eurosat/rgb', 2, 'train[:800]', 'train[16200:16400]', 'train[21600:]', 10
  ),
  'resisc45': Task(
    'specialized', 'resisc45', 3, 'train[:800]', 'train[18900:19100]', 'train[25200:]', 45,
    manual=RESISC,
  ),
  'retinopathy': Task(
    'specialized', 'diabetic_retinopathy_detection/btgraham-300', 3, *OTHER, 5, manual=KAGGLE
  ),
  'clevr_count': Task(
    *CLEVR, 8, count_objects, crop=False, names=tuple(f'{i} objects' for i in range(3, 11))
  ),
  'clevr_distance': Task(*CLEVR, 6, closest_object, crop=False, names=DISTANCES),
  'dmlab': Task('structured', 'dmlab', 2, *OTHER, 6, crop=False),
  'dsprites_location': Task(
    *DSPRITES, X_POSITION, crop=False, flip=False, names=SIXTEEN, scale=255
  ),
  'dsprites_orientation': Task(
    *DSPRITES, ORIENTATION, flip=False, names=SIXTEEN, scale=255
  ),
  'kitti_distance': Task(
    'structured', 'kitti', 3, *OTHER, 4, closest_vehicle, crop=False, names=VEHICLES
  ),
  'smallnorb_azimuth': Task(*NORB, 18, 'label_azimuth', flip=False),
  'smallnorb_elevation': Task(*NORB, 9, 'label_elevation'),
}  # fmt: skip
