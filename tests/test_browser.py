"""The atlas and the live page in a real browser: mouse, finger, keys, a phone, what goes wrong.

With VIT_JAX_REQUIRE_BROWSER=1 a missing browser fails these tests; else it skips them.
"""

import base64
import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import NoReturn
import urllib.request

from commands import UNOPTIMISED
from conftest import ROOT
import numpy as np
from PIL import Image
import pytest
from test_interpret import FAMILIES, pixels, write
from test_serve import TOKEN, encoded, fake_png, running

from vit_jax import predict
from vit_jax.interpret import __main__ as command
from vit_jax.interpret import live

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore')]
CHROMIUM, DRIVER = pathlib.Path('/usr/bin/chromium'), pathlib.Path('/usr/bin/chromedriver')
FLAGS = (
  'headless', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-sync',
  'disable-background-networking', 'disable-component-update', 'disable-dev-shm-usage',
)  # fmt: skip
DESK, PHONE = (1200, 900), (360, 740)
DROP = """
const transfer = new DataTransfer();
for (const [name, text] of arguments[0]) {
  transfer.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name));
}
document.getElementById('drop').dispatchEvent(
  new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true }));
"""
WIDE = 'return document.documentElement.scrollWidth - document.documentElement.clientWidth'
# chromedriver takes a frame that begins above the window for one that begins at its edge.
PLACE = """
if (frameElement) frameElement.scrollIntoView({ block: 'start' });
else arguments[0].scrollIntoView({ block: 'center' });
return arguments[0].getBoundingClientRect().toJSON();
"""
LOADED = "return document.getElementById('%s').naturalWidth"


def give_up(reason) -> NoReturn:
  """Fails where a browser is required, and skips elsewhere."""
  (pytest.fail if os.environ.get('VIT_JAX_REQUIRE_BROWSER') else pytest.skip)(reason)


@contextlib.contextmanager
def browsing(address, size, folder):
  """Chromium at an address; says afterwards that nothing else was asked and nothing complained.

  Yields:
    The driver, with `text(id)`, `wait(condition)`, `tab()` and `complaints`, words of messages of
    the console that are expected.
  """
  missing = [str(path) for path in (CHROMIUM, DRIVER) if not path.exists()]
  missing += [] if importlib.util.find_spec('selenium') else ['selenium (the extra browser)']
  if missing:
    give_up(f'needs {", ".join(missing)}')
  from selenium import webdriver
  from selenium.common.exceptions import WebDriverException
  from selenium.webdriver.chrome.service import Service
  from selenium.webdriver.support.wait import WebDriverWait

  options = webdriver.ChromeOptions()
  options.binary_location = str(CHROMIUM)
  for flag in (*FLAGS, f'user-data-dir={folder / "profile"}', 'window-size={},{}'.format(*size)):
    options.add_argument(f'--{flag}')
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
  if size == PHONE:
    metrics = {'width': size[0], 'height': size[1], 'pixelRatio': 2.0, 'touch': True}
    options.add_experimental_option('mobileEmulation', {'deviceMetrics': metrics})
  try:
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
  except WebDriverException as error:
    give_up(f'Chromium does not start here: {error.msg}')
  driver.text = lambda name: driver.find_element('id', name).text
  driver.wait = lambda condition: WebDriverWait(driver, 60).until(lambda _: condition())
  driver.tab = lambda: webdriver.ActionChains(driver).send_keys('\ue004').perform()
  driver.complaints = ()
  try:
    driver.get('about:blank')
    driver.get_log('performance')  # What the browser shows before.
    driver.get(address)
    yield driver
    driver.switch_to.default_content()
    sides = driver.execute_script(WIDE)
    console, requests = driver.get_log('browser'), driver.get_log('performance')
  finally:
    driver.quit()
  said = [line['message'] for line in console]
  assert not [line for line in said if not any(word in line for word in driver.complaints)]
  assert sides <= 0, f'the page is {sides} pixels wider than the window'
  origin = address.partition('?')[0]
  for message in (json.loads(line['message'])['message'] for line in requests):
    if message['method'] == 'Network.requestWillBeSent':
      url = message['params']['request']['url']
      assert url.startswith((origin, 'data:', f'blob:{origin}', 'about:')), url


def put(driver, element, x, y, kind='mouse'):
  """Moves the mouse to a place of an element, in shares of its sides, or taps there."""
  from selenium.webdriver.common.actions.action_builder import ActionBuilder
  from selenium.webdriver.common.actions.pointer_input import PointerInput

  actions = ActionBuilder(driver, mouse=PointerInput(kind, kind))
  box = driver.execute_script(PLACE, element)
  actions.pointer_action.move_to_location(
    int(box['x'] + x * box['width']), int(box['y'] + y * box['height'])
  )
  if kind == 'touch':
    actions.pointer_action.pointer_down().pointer_up()
  actions.perform()


def tells(driver, name, words):
  """Waits for words in an element: a finger's tap is answered after the driver has gone on."""
  driver.wait(lambda: words in driver.text(name))


def press(driver, name):
  """Presses a button of the atlas by the words on it."""
  driver.find_element('xpath', f"//button[normalize-space()='{name}']").click()


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A random ViT of 6 x 4 patches and three blocks, two pictures, and the atlas of them."""
  root = tmp_path_factory.mktemp('browser')
  predictor = predict.load(write(root / 'model', 'vit', **FAMILIES['vit']))
  for name, image in zip('ab', pixels(predictor), strict=True):
    Image.fromarray(image).save(root / f'{name}.png')
  command.main(['atlas', str(root / 'model'), str(root), f'--out={root}'])
  return predictor, root


@pytest.fixture
def atlas(model):
  return f'file://{model[1]}/atlas.html'


def test_a_patch_that_is_pointed_at(atlas, tmp_path):
  with browsing(atlas, DESK, tmp_path) as page:
    canvas = page.find_element('id', 'map')
    drawn = set()
    for (x, y), where in {
      (0.1, 0.1): 'patch 1 (row 1, column 1)',
      (0.9, 0.1): 'patch 4 (row 1, column 4)',
      (0.4, 0.6): 'patch 14 (row 4, column 2)',
    }.items():
      put(page, canvas, x, y)
      assert page.text('said').startswith(f'{where}: ')
      assert where in page.text('normWords')
      drawn.add(page.execute_script('return arguments[0].toDataURL()', canvas))
    assert len(drawn) == 3
    press(page, 'class token')
    assert page.text('said').startswith('class token: 0.99')
    page.find_elements('css selector', '#pictures button')[1].click()
    assert ' of b, class token' in canvas.get_attribute('aria-label')


def test_views_and_readouts(atlas, tmp_path):
  with browsing(atlas, DESK, tmp_path) as page:
    from selenium.webdriver.support.select import Select

    for name, words in {
      'Attention': 'attention from it, block 3, mean of heads',
      'Norm': 'norm of every token, after block 3 of 3',
      'Classifier': 'the answer to the image',
      'Readout': 'share of each token in what class_token reads; its own is 0.0000',
    }.items():
      press(page, name)
      assert words in page.text('what')
    Select(page.find_element('id', 'readout')).select_by_visible_text('mean')
    assert 'what mean reads; its own is 0.0417. Outside the map: class token 0.0000' in page.text(
      'what'
    )
    press(page, 'Attention')
    put(page, page.find_element('id', 'heads'), 0.9, 0.5)
    page.find_element('id', 'heads').click()
    assert 'block 2' in page.text('what')
    assert len(page.find_elements('css selector', '#lens tr')) == 4


def test_the_atlas_by_keys_alone(atlas, tmp_path):
  with browsing(atlas, DESK, tmp_path) as page:
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(12):
      page.tab()
      now = page.switch_to.active_element
      reached.append(now.get_attribute('id') or now.text)
    assert {'map', 'class token', 'Similarity', 'Readout', 'depth'} <= {*reached}
    canvas = page.find_element('id', 'map')
    for key, words in [
      (Keys.ARROW_LEFT, 'patch 14 (row 4, column 2)'),
      (Keys.ARROW_UP, 'patch 10 (row 3, column 2)'),
      (Keys.ARROW_DOWN, 'patch 14 (row 4, column 2)'),
    ]:
      canvas.send_keys(key)
      assert page.text('said').startswith(words)
    canvas.send_keys('2')
    assert 'block 3, mean of heads' in page.text('what')
    canvas.send_keys(Keys.PAGE_DOWN, ']')
    assert 'block 2, head 1' in page.text('what')
    assert page.text('depthName') == 'after block 2 of 3'


def test_the_atlas_on_a_phone(atlas, tmp_path):
  with browsing(atlas, PHONE, tmp_path) as page:
    canvas = page.find_element('id', 'map')
    put(page, canvas, 0.9, 0.95, 'touch')
    tells(page, 'said', 'patch 24 (row 6, column 4)')
    assert page.execute_script('return innerWidth') == PHONE[0]
    for name in ('Attention', 'Norm', 'Classifier', 'Readout', 'Similarity'):
      press(page, name)
      assert page.execute_script(WIDE) <= 0
    small = page.execute_script(
      "return [...document.querySelectorAll('button, select, input')].filter(x => x.offsetParent"
      ' && x.getBoundingClientRect().height < 36).map(x => x.id || x.textContent)'
    )
    assert small == []  # Each is large enough for a finger.


@pytest.fixture(scope='module')
def asked(model):
  return live.Live(model[0], 'runs/vit', live.Limits(file_megabytes=0.1, megapixels=1.0, keep=2))


def drop(page, **files):
  """Drops files on the page, whose names end at the last underscore."""
  content = [(name, base64.b64encode(data).decode()) for name, data in files.items()]
  page.execute_script(DROP, content)


def told(page):
  """The classes that the page shows, with their probabilities in per cent."""
  rows = page.find_elements('css selector', '#classes tr')
  pairs = [[cell.text for cell in row.find_elements('css selector', 'th, td')] for row in rows]
  return [(pair[0], pair[-1]) for pair in pairs]


@pytest.mark.parametrize('size', [DESK, PHONE], ids=['desk', 'phone'])
def test_pictures_on_the_live_page(asked, tmp_path, size):
  """A picture, no picture, a bomb, a file of too many bytes, and again a picture, with a token."""
  data = encoded(size=(60, 40))
  with running(asked, token=TOKEN) as ask:
    address = f'http://127.0.0.1:{ask.port}/'
    with browsing(f'{address}?token={TOKEN}', size, tmp_path) as page:
      drop(page, picture=data)
      page.wait(lambda: told(page))
      seen = asked.predictor.preprocess(data)
      found = asked.predictor(seen[None], ('probabilities',))['probabilities'][0]
      expected = asked.predictor.top(found, 5)
      rows = [(row['class'], f'{100 * row["probability"]:.1f} %') for row in expected]
      assert told(page) == rows
      page.wait(lambda: page.execute_script(LOADED % 'rollout') > 300)
      page.wait(lambda: page.find_element('id', 'atlas').is_displayed())

      page.switch_to.frame('atlas')
      fits = 'return document.documentElement.scrollHeight <= innerHeight'
      page.wait(lambda: page.execute_script(fits))  # The frame is as high as what is in it.
      put(page, page.find_element('id', 'map'), 0.9, 0.1, 'mouse' if size == DESK else 'touch')
      tells(page, 'said', 'patch 4 (row 1, column 4)')
      press(page, 'Attention')
      tells(page, 'what', 'block 3, mean of heads')
      assert page.execute_script(WIDE) <= 0
      page.wait(lambda: page.execute_script(fits))
      page.switch_to.default_content()

      page.complaints = ('400 (Bad Request)', '413 (')
      bomb = fake_png(60_000, 60_000)
      drop(page, broken=data[:300], bomb=bomb, words=b'hello', large=bytes(200_000))
      page.wait(lambda: len(page.find_elements('css selector', '#errors li')) == 4)
      errors = page.text('errors')
      for words in (
        'broken: damaged image', 'bomb: more than the 1,000,000 pixels',
        'words: not a picture of a known format', 'large: the file has 0.2 MB, and 0.1 MB',
      ):  # fmt: skip
        assert words in errors
      assert told(page) == rows  # What was there is there.

      for i in range(2):
        Image.fromarray(np.full((30, 30, 3), 99 * i, np.uint8)).save(tmp_path / f'next_{i}.png')
        page.find_element('id', 'file').send_keys(str(tmp_path / f'next_{i}.png'))
        page.wait(lambda i=i: page.text('name') == f'next_{i}.png')
      assert not page.find_element('id', 'errors').is_displayed()
      # At rest first: a tap beside a frame that is loading may be lost, or come late.
      page.wait(lambda: page.find_element('id', 'atlas').get_attribute('class') == '')
      page.wait(lambda: page.find_element('id', 'rollout').get_attribute('class') == '')
      first, last = page.find_elements('css selector', '#pictures button')  # The oldest is gone.
      assert first.get_attribute('aria-pressed') == 'true'
      last.click()
      tells(page, 'name', 'next_0.png')
      page.wait(lambda: page.find_element('id', 'atlas').is_displayed())


def test_the_live_page_by_keys_and_without_a_server(asked, tmp_path):
  with contextlib.ExitStack() as stack:
    server = contextlib.ExitStack()
    ask = server.enter_context(running(asked))
    page = stack.enter_context(browsing(f'http://127.0.0.1:{ask.port}/', DESK, tmp_path))
    page.tab()
    assert page.switch_to.active_element.get_attribute('id') == 'file'
    drop(page, picture=encoded())
    page.wait(lambda: told(page))
    page.tab()
    assert page.switch_to.active_element.get_attribute('title') == 'picture'
    server.close()
    page.complaints = ('ERR_CONNECTION_REFUSED',)
    drop(page, late=encoded())
    page.wait(
      lambda: page.text('errors') == 'late: the server does not answer: is it still running?'
    )


def test_an_atlas_that_is_not_there_is_told(asked, tmp_path):
  """Of a picture that the server has forgotten, as for another client's: no frame shows that."""
  with (
    running(asked) as ask,
    browsing(f'http://127.0.0.1:{ask.port}/', DESK, tmp_path) as page,
  ):
    drop(page, picture=encoded())
    page.wait(
      lambda: page.text('noAtlas') == '' and page.find_element('id', 'alone').is_displayed()
    )
    asked._kept.clear()
    page.complaints = ('404 (',)
    page.find_element('css selector', '#pictures button').click()
    page.wait(lambda: page.text('noAtlas').startswith('no such picture: the last 2 are kept'))
    assert not page.find_element('id', 'atlas').is_displayed()
    assert not page.find_element('id', 'alone').is_displayed()


def test_a_model_without_attention_on_the_live_page(tmp_path):
  predictor = predict.load(write(tmp_path, 'bit', **FAMILIES['bit']))
  with (
    running(live.Live(predictor, 'runs/bit', live.Limits())) as ask,
    browsing(f'http://127.0.0.1:{ask.port}/', DESK, tmp_path) as page,
  ):
    drop(page, picture=encoded())
    page.wait(lambda: told(page))
    assert len(told(page)) == 3
    assert page.text('noRollout').startswith('None: a bit has no attention to show')
    assert page.text('noAtlas').startswith('None: a bit has no blocks of tokens')
    assert not page.find_element('id', 'atlas').is_displayed()


def test_the_command_serves_until_ctrl_c(model, tmp_path):
  """It says where, answers, leaves nothing behind, and Ctrl-C is no error."""
  pytest.importorskip('uvicorn', reason="needs the extra page: pip install -e '.[page]'")
  environment = os.environ | {'XLA_FLAGS': UNOPTIMISED, 'PYTHONPATH': str(ROOT)}
  words = ['-m', 'vit_jax.interpret', 'serve', str(model[1] / 'model'), '--port=0']
  process = subprocess.Popen(
    [sys.executable, *words, f'--token={TOKEN}'], cwd=tmp_path, env=environment, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip
  try:
    assert process.stdout.readline().startswith('reading ')
    address = process.stdout.readline().split()[1]
    assert address.endswith(f'?token={TOKEN}')
    request = urllib.request.Request(address.replace('/?', '/pictures?'), encoded())
    answer = json.load(urllib.request.urlopen(request))
    assert len(answer['classes']) == 3
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, '')
  finally:
    process.kill()
  assert not list(tmp_path.iterdir())
