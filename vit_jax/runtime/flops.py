"""Floating point operations of a function, counted from what it traces to (a jaxpr).

Products alone count, a multiplication and an addition as two: at a ViT's sizes they are more than
99 % of the arithmetic. What is computed again in the backward pass counts again. A kernel hides its
products, so count a function that uses none.
"""

from collections.abc import Callable, Iterator
import math
from typing import Any

import jax
from jax.extend import core


def flops_of(function: Callable, *arguments: Any) -> int:
  """Operations of one call for arguments of these shapes, on all devices together."""
  return count(jax.make_jaxpr(function)(*arguments).jaxpr)


def count(jaxpr: Any) -> int:
  """Operations of a jaxpr; a loop without a known length counts once, of branches the longest."""
  return sum(count_equation(equation) for equation in jaxpr.eqns)


def count_equation(equation: Any) -> int:
  """Operations of one equation and of all that stands within it."""
  name = equation.primitive.name
  if name in PRODUCTS:
    return PRODUCTS[name](equation)
  inner = [count(jaxpr) for jaxpr in inner_jaxprs(equation)]
  if name == 'cond':
    return max(inner, default=0)
  return sum(inner) * times(equation)


def times(equation: Any) -> int:
  """How often an equation runs what stands within it, on all devices together."""
  if equation.primitive.name == 'scan':
    return equation.params['length']
  if equation.primitive.name == 'shard_map':
    sizes, manual = equation.params['mesh'].shape, equation.params['newly_manual_axes']
    return math.prod(sizes[axis] for axis in manual)
  return 1


def inner_jaxprs(equation: Any) -> Iterator[Any]:
  """The jaxprs among an equation's parameters."""
  for value in equation.params.values():
    for one in value if isinstance(value, tuple | list) else (value,):
      if isinstance(one, core.ClosedJaxpr):
        yield one.jaxpr
      elif isinstance(one, core.Jaxpr):
        yield one


def dot_flops(equation: Any) -> int:
  """Two for each element of the result and each of the axes that are summed over."""
  (summed, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval
  return 2 * equation.outvars[0].aval.size * math.prod(left.shape[axis] for axis in summed)


def convolution_flops(equation: Any) -> int:
  """Two for each element of the result and each input that its kernel covers, padding included.

  Where the input was spread out with zeros, as in the gradient of a strided convolution, these are
  not multiplied by any good implementation and do not count.
  """
  _, kernel = (one.aval for one in equation.invars)
  parameters = equation.params
  features = parameters['dimension_numbers'].rhs_spec[0]
  each = math.prod(size for axis, size in enumerate(kernel.shape) if axis != features)
  spread = math.prod(parameters['lhs_dilation'])
  return 2 * equation.outvars[0].aval.size * each // spread


PRODUCTS: dict[str, Callable[[Any], int]] = {
  'dot_general': dot_flops,
  'conv_general_dilated': convolution_flops,
}
