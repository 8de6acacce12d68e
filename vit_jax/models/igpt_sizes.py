"""Sizes of iGPT by their names (Chen et al., ICML 2020, section 3.3); digits and mu are ours.

XL was never released and the paper does not tell its heads: they are 64 wide here, as in S.
"""

SIZES = {
  'mu': dict(width=32, depth=1, num_heads=2, mlp_dim=128),
  'digits': dict(width=64, depth=4, num_heads=4, mlp_dim=256),
  'S': dict(width=512, depth=24, num_heads=8, mlp_dim=2048),
  'M': dict(width=1024, depth=36, num_heads=8, mlp_dim=4096),
  'L': dict(width=1536, depth=48, num_heads=16, mlp_dim=6144),
  'XL': dict(width=3072, depth=60, num_heads=48, mlp_dim=12288),
}
