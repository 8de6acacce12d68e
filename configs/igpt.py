from vit_jax import defaults

def get_config(what='digits'):
  config = defaults.get_config()
  config.model = dict(name='igpt', variant='digits', clusters=16)
  config.objective = dict(name='autoregressive')
  config.evaluators = ('pixels', 'linear')
  config.evaluation = dict(linear=dict(layers='all', readout='mean'))
  config.optimizer = dict(name='adam', learning_rate=2e-3, b2=0.95, warmup_steps=100)
  config.total_steps = 1000
  config.eval_every = 250
  config.checkpoint_every = 250
  return config
