"""The live page's server: who may ask, what is refused, what is kept, what a model lacks."""

import concurrent.futures
import contextlib
import http.client
import io
import json
import re
import socket
import struct
import sys
import threading
import time
import zlib

import numpy as np
from PIL import Image
import pytest
import test_interpret
from test_interpret import FAMILIES, write

from vit_jax import predict
from vit_jax.data import pictures
from vit_jax.interpret import __main__ as command
from vit_jax.interpret import access, live, pages, serve

HERE = {'host': '127.0.0.1:8765'}
NAMES = {'headless': 'vit'}
SIZES = FAMILIES | {'headless': dict(image_size=(8, 8), variant='mu/4', depth=1)}
TOKEN = 'a-word-of-many-letters'


def fake_png(width, height):
  """A PNG file that ends after its header."""
  header = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  whole = struct.pack('>I', 13) + header + struct.pack('>I', zlib.crc32(header))
  return b'\x89PNG\r\n\x1a\n' + whole + struct.pack('>I', 99) + b'IDAT'


def encoded(kind='PNG', size=(30, 20), seed=0, **options):
  """A random picture's file."""
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  content = io.BytesIO()
  Image.fromarray(pixels).save(content, kind, **options)
  return content.getvalue()


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
  """A random ViT that is asked; two pictures are kept."""
  predictor = predict.load(write(tmp_path_factory.mktemp('vit'), 'vit', **FAMILIES['vit']))
  return live.Live(predictor, 'runs/vit', live.Limits(file_megabytes=0.1, megapixels=0.05, keep=2))


@contextlib.contextmanager
def running(asked, host='127.0.0.1', token=''):
  """A server in a thread: `ask(method, path, body, **headers) -> (status, headers, body)`."""
  pytest.importorskip('uvicorn', reason="needs the extra page: pip install -e '.[page]'")
  pytest.importorskip('starlette', reason="needs the extra page: pip install -e '.[page]'")
  server = serve.make_server(asked, access.make_access(host, token))
  with serve.listen('127.0.0.1', 0) as listening:
    port = listening.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={'sockets': [listening]})
    thread.start()

    def ask(method, path, body=None, **headers):
      connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
      connection.request(method, path, body, {k.replace('_', '-'): v for k, v in headers.items()})
      answer = connection.getresponse()
      content = answer.read()
      connection.close()
      return answer.status, answer.headers, content

    ask.port = port
    try:
      yield ask
    finally:
      server.should_exit = True
      thread.join(30)
    assert not thread.is_alive()


# Who may ask.


@pytest.mark.parametrize(
  ('host', 'headers', 'status'),
  [
    ('127.0.0.1', {'host': 'localhost:9000'}, None),  # Through a tunnel.
    ('127.0.0.1', {'host': '[::1]:8765'}, None),
    ('127.0.0.1', {'host': 'evil.example:8765'}, 403),
    ('127.0.0.1', {'host': '127.0.0.1.evil.example'}, 403),
    ('127.0.0.1', {'host': '192.168.1.5:8765'}, 403),
    ('127.0.0.1', {'host': '[::1'}, 403),
    ('127.0.0.1', {}, 403),
    ('192.168.1.5', {'host': '192.168.1.5:8765'}, 401),
    ('0.0.0.0', {'host': '192.168.1.5:8765'}, 401),
    ('0.0.0.0', {'host': f'{socket.gethostname()}:1'}, 401),
    ('0.0.0.0', {'host': 'evil.example'}, 403),
    ('box.lan', {'host': 'BOX.lan.:8765'}, 401),
  ],
)
def test_a_server_answers_to_its_own_names(host, headers, status):
  found = access.make_access(host, '').refusal('GET', headers, '')
  assert (found and found[0]) == status


@pytest.mark.parametrize(
  ('headers', 'allowed'),
  [
    ({}, True),  # No browser.
    ({'origin': 'http://127.0.0.1:8765', 'sec-fetch-site': 'same-origin'}, True),
    ({'origin': 'http://127.0.0.1:8000', 'sec-fetch-site': 'same-site'}, False),
    ({'origin': 'http://127.0.0.1:8000'}, False),
    ({'origin': 'https://evil.example'}, False),
    ({'origin': 'null'}, False),
    ({'sec-fetch-site': 'cross-site'}, False),
  ],
)
def test_pages_of_other_sites_post_nothing(headers, allowed):
  who = access.make_access('127.0.0.1', '')
  found = who.refusal('POST', HERE | headers, '')
  assert found is None if allowed else found[0] == 403


def test_every_request_brings_the_token():
  assert access.make_access('localhost', '').token == ''
  made = {access.make_access('0.0.0.0', '').token for _ in range(2)}
  assert len(made) == 2 and min(map(len, made)) >= 32
  who = access.make_access('127.0.0.1', TOKEN)
  assert who.refusal('GET', HERE, '')[0] == 401
  assert who.refusal('GET', HERE, f'token={TOKEN}x')[0] == 401
  assert who.refusal('GET', HERE | {'authorization': 'Bearer ü'}, f'token={TOKEN}')[0] == 401
  assert who.refusal('GET', HERE, f'top=2&token={TOKEN}') is None
  assert who.refusal('POST', HERE | {'authorization': f'bearer {TOKEN}'}, '') is None
  for bad in ('short', 'with a space in the middle', 'ends/in&nothing-good'):
    with pytest.raises(ValueError, match='--token needs 16 letters'):
      access.make_access('127.0.0.1', bad)


# What is read, and kept.


def test_a_picture_is_told_as_by_the_other_commands(asked, tmp_path):
  data = encoded()
  told = asked.add(data, 2)
  seen = asked.predictor.preprocess(data)
  expected = asked.predictor(seen[None], ('probabilities',))['probabilities'][0]
  assert told['classes'] == asked.predictor.top(expected, 2) and told['missing'] == {}
  assert (told['rollout'], told['atlas']) == tuple(f'pictures/{told["id"]}/{part}'
                                                   for part in ('rollout', 'atlas'))  # fmt: skip
  (tmp_path / 'picture.png').write_bytes(data)
  folder = tmp_path / 'out'
  files = [asked.predictor, str(tmp_path / 'picture.png')]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(predict, 'load', lambda path: files[0])
    command.main(['rollout', 'runs/vit', files[1], f'--out={folder}'])
    command.main(['atlas', 'runs/vit', files[1], f'--out={folder}'])
  drawn = Image.open(io.BytesIO(asked.show(told['id'], 'rollout')))
  other = Image.open(folder / 'rollout_picture.png')
  np.testing.assert_array_equal(np.asarray(drawn), np.asarray(other))
  page = (folder / 'atlas.html').read_text().replace('"name": "picture"', '"name": "NAME"')
  assert re.sub('"name": "picture [0-9]+"', '"name": "NAME"',
                asked.show(told['id'], 'atlas').decode()) == page  # fmt: skip


def test_nothing_is_compiled_after_the_start(asked):
  before = asked.predictor._compiled.cache_info().misses
  for seed in (1, 2):
    word = asked.add(encoded(seed=seed, size=(10 * seed, 40)), 5)['id']
    asked.show(word, 'rollout')
    asked.show(word, 'atlas')
  assert asked.predictor._compiled.cache_info().misses == before


def test_the_oldest_are_forgotten(asked):
  words = [asked.add(encoded(seed=seed), 1)['id'] for seed in range(3)]
  assert len({*words}) == 3 and min(map(len, words)) >= 20
  with pytest.raises(live.Refused, match='the last 2 are kept') as caught:
    asked.show(words[0], 'rollout')
  assert caught.value.status == 404
  assert asked.show(words[1], 'rollout').startswith(b'\x89PNG')
  with pytest.raises(live.Refused, match=r"no such part '\.\./secret'"):
    asked.show(words[1], '../secret')


def array(pixels, shape=None):
  """The content of a .npy file, which may lie of its shape."""
  content = io.BytesIO()
  np.save(content, pixels)
  return content.getvalue().replace(b'(8, 9, 3)', shape or b'(8, 9, 3)')


PIXELS = np.zeros((8, 9, 3), np.uint8)
BOMB = fake_png(60_000, 60_000)  # A header alone: whoever decodes it says that it is broken.


@pytest.mark.parametrize(
  ('data', 'status', 'message'),
  [
    (b'', 400, 'no picture was sent'),
    (b'hello', 400, 'not a picture of a known format: BMP, GIF, JPEG'),
    (encoded('TIFF'), 400, 'not a picture of a known format'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 400, 'not a picture of a known format'),
    (encoded()[:300], 400, 'damaged image'),
    (encoded('JPEG')[:60], 400, 'damaged image|not a picture'),
    (fake_png(300, 200), 413, '300 x 200 pixels, more than the 50,000 that are allowed'),
    (fake_png(10_000, 10_000), 413, 'more than the 50,000'),
    (BOMB, 413, 'more than the 50,000'),
    (fake_png(1, 101), 413, 'more than 100 times the other'),
    (array(PIXELS, b'(900000, 900000, 3)'), 400, 'is no picture'),
    (array(PIXELS.astype('f4')), 400, 'must be uint8'),
    (array(np.zeros((0, 9, 3), np.uint8)), 400, 'is no picture'),
    (array(np.array([{}])), 400, 'is no picture'),
  ],
  ids=lambda value: '' if isinstance(value, bytes) else str(value)[:20],
)
def test_what_is_no_picture_is_refused(asked, data, status, message):
  with pytest.raises(live.Refused, match=message) as caught:
    asked.add(data, 1)
  assert caught.value.status == status
  assert asked.add(encoded(), 1)['classes']


@pytest.mark.parametrize('kind', ['BMP', 'GIF', 'JPEG', 'PPM', 'WEBP', 'MPO', 'NPY'])
def test_formats_of_browsers_and_phones_are_read(asked, kind):
  """As every other command reads them, and turned once where they ask for it."""
  assert kind in (*pictures.FORMATS, 'MPO', 'NPY')
  turned = Image.Exif()
  turned[0x0112] = 6
  data = array(PIXELS) if kind == 'NPY' else encoded(kind, exif=turned)
  np.testing.assert_array_equal(asked.seen(data), asked.predictor.preprocess(data))
  assert len(asked.add(data, 5)['classes']) == 3


def test_what_was_measured_is_decoded(asked, monkeypatch):
  """No other format that the file has too: here one that any file has, and that comes first."""
  data = encoded()
  expected = asked.predictor.preprocess(data)
  monkeypatch.setattr(Image, 'ID', ['ANY', *Image.ID])
  monkeypatch.setitem(Image.OPEN, 'ANY', (lambda *_: Image.new('L', (512, 512)), None))
  assert Image.open(io.BytesIO(data)).size == (512, 512)
  np.testing.assert_array_equal(asked.seen(data), expected)


@pytest.mark.parametrize(
  ('given', 'message'),
  [(dict(keep=0), '--keep=0 must be above 0'), (dict(megapixels=90.0), '--megapixels=90.0 must')],
)
def test_limits_are_possible(given, message):
  with pytest.raises(ValueError, match=message):
    live.Limits(**given)


@pytest.mark.parametrize(
  ('name', 'lacks'),
  [
    pytest.param(
      'bit',
      {'rollout': 'a bit has no attention to show', 'atlas': 'a bit has no blocks of tokens'},
      marks=pytest.mark.slow,
    ),
    ('swin', {'rollout': 'multiplies blocks of one grid', 'atlas': 'a swin has no blocks of'}),
    ('headless', {'classes': 'no head, so they know no classes'}),
  ],
)
def test_what_a_model_lacks_is_said(tmp_path, monkeypatch, name, lacks):
  if name == 'headless':
    monkeypatch.setattr(test_interpret, 'CLASSES', [])
  predictor = predict.load(write(tmp_path, NAMES.get(name, name), **SIZES[name]))
  found = live.Live(predictor, name, live.Limits())
  told = found.add(encoded(), 5)
  assert told['missing'] == found.missing and found.missing.keys() == lacks.keys()
  for part, reason in lacks.items():
    assert reason in found.missing[part] and not told.get(part)
  assert len(told['classes']) == (0 if 'classes' in lacks else 3)
  if 'atlas' in lacks:
    with pytest.raises(live.Refused, match=lacks['atlas']) as caught:
      found.show(told['id'], 'atlas')
    assert caught.value.status == 404


# The server.


def test_the_page_and_what_it_asks_for(asked):
  with running(asked) as ask:
    status, headers, body = ask('GET', '/')
    assert status == 200 and b'"checkpoint": "runs/vit"' in body and pages.MARK.encode() not in body
    assert "script-src 'sha256-" in headers['content-security-policy']
    assert "frame-ancestors 'none'" in headers['content-security-policy']
    status, headers, body = ask('POST', '/pictures?top=2', encoded())
    told = json.loads(body)
    assert status == 200 and len(told['classes']) == 2
    status, headers, body = ask('GET', f'/{told["rollout"]}')
    assert (status, headers['content-type']) == (200, 'image/png') and body[1:4] == b'PNG'
    assert "default-src 'none'" in headers['content-security-policy']
    status, headers, body = ask('GET', f'/{told["atlas"]}')
    assert status == 200 and body == asked.show(told['id'], 'atlas')
    assert "frame-ancestors 'self'" in headers['content-security-policy']


def test_the_server_survives_what_it_refuses(asked, monkeypatch):
  """Every answer is JSON with a reason, and has the headers that keep a browser safe."""
  most = asked.limits.size
  with running(asked) as ask:
    cases = [
      (400, 'not a picture', ask('POST', '/pictures', b'hello')),
      (413, 'more than the 50,000', ask('POST', '/pictures', BOMB)),
      (413, '0.1 MB that are allowed', ask('POST', '/pictures', bytes(most + 1))),
      (413, '0.1 MB that are allowed', ask('POST', '/pictures', iter([bytes(most)] * 3))),
      (415, '--data-binary', ask('POST', '/pictures', b'', content_type='multipart/form-data')),
      (400, 'whole number', ask('POST', '/pictures?top=x', encoded())),
      (400, 'whole number from 1 on', ask('POST', '/pictures?top=0', encoded())),
      (400, 'whole number from 1 on', ask('POST', '/pictures?top=-5', encoded())),
      (404, 'no such picture', ask('GET', '/pictures/none/atlas')),
      (404, 'Not Found', ask('GET', '/pictures/..%2f..%2fetc%2fpasswd/atlas')),
      (404, 'Not Found', ask('GET', '/static/serve.py')),
      (405, 'Method Not Allowed', ask('DELETE', '/pictures')),
      (403, 'not called', ask('GET', '/', host='evil.example')),
      (403, 'another site', ask('POST', '/pictures', encoded(), origin='http://evil.example')),
    ]
    with monkeypatch.context() as patch:
      patch.setattr(asked, 'show', lambda *_: 1 / 0)
      cases.append((500, 'ZeroDivisionError', ask('GET', '/pictures/a/atlas')))
    for status, message, (found, headers, body) in cases:
      assert found == status and message in json.loads(body)['error']
      assert (
        headers['x-content-type-options'] == 'nosniff' and headers['cache-control'] == 'no-store'
      )
      assert "default-src 'none'" in headers['content-security-policy']
    assert ask('POST', '/pictures', encoded())[0] == 200


def test_with_a_token_nothing_is_told_without(asked):
  with running(asked, '127.0.0.1', TOKEN) as ask:
    paths = (('GET', '/'), ('GET', '/none'), ('GET', '/pictures/a/atlas'), ('POST', '/pictures'))
    for method, path in paths:
      status, _, body = ask(method, path, b'')
      assert status == 401 and 'token' in json.loads(body)['error']
    assert ask('GET', f'/?token={TOKEN}')[0] == 200
    assert ask('POST', '/pictures', encoded(), authorization=f'Bearer {TOKEN}')[0] == 200


def test_the_model_is_asked_by_one_request_at_a_time(asked, monkeypatch):
  inside, most = [], []

  def add(data, top):
    inside.append(data)
    most.append(len(inside))
    time.sleep(0.05)
    inside.pop()
    return {'classes': len(data)}

  monkeypatch.setattr(asked, 'add', add)
  with running(asked) as ask, concurrent.futures.ThreadPoolExecutor(4) as pool:
    found = list(pool.map(lambda n: ask('POST', '/pictures', bytes(n)), range(1, 5)))
  assert [json.loads(body)['classes'] for _, _, body in found] == [1, 2, 3, 4]
  assert most == [1, 1, 1, 1]


def test_who_may_not_ask_keeps_no_one_waiting(asked):
  with running(asked, token=TOKEN) as ask, contextlib.ExitStack() as silent:
    for _ in range(access.BUSY + 8):
      silent.enter_context(socket.create_connection(('127.0.0.1', ask.port)))
    assert ask('GET', '/')[0] == 401
    assert ask('GET', f'/?token={TOKEN}')[0] == 200


def test_more_than_can_be_answered_are_told(asked, monkeypatch):
  monkeypatch.setattr(access, 'BUSY', 1)
  inside, done = threading.Event(), threading.Event()
  monkeypatch.setattr(asked, 'add', lambda *_: inside.set() or {'waited': done.wait(60)})
  with running(asked) as ask, concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(ask, 'POST', '/pictures', b'x')
    assert inside.wait(60)
    status, headers, body = ask('GET', '/')
    done.set()
    assert status == 503 and '1 requests are being answered' in json.loads(body)['error']
    assert headers['x-content-type-options'] == 'nosniff'
    assert json.loads(first.result()[2]) == {'waited': True}
    assert ask('GET', '/')[0] == 200


# The command.


def test_a_port_that_cannot_be_had_is_one_line(tmp_path):
  """Before any weights are read: there are none."""
  with serve.listen('127.0.0.1', 0) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(SystemExit, match=rf'port {port} of 127.* is taken.*--port={port + 1}'):
      command.main(['serve', str(tmp_path), f'--port={port}'])
  with pytest.raises(SystemExit, match='--port=70000 must be 0 to 65535'):
    command.main(['serve', str(tmp_path), '--port=70000'])
  with pytest.raises(SystemExit, match=r'--host=192\.0\.2\.1 --port=0 cannot be listened on'):
    command.main(['serve', str(tmp_path), '--host=192.0.2.1', '--port=0'])


def test_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'uvicorn', None)
  with pytest.raises(SystemExit, match=r"uvicorn.*pip install -e '\.\[page\]'"):
    command.main(['serve', str(tmp_path)])


def test_the_address_is_whole():
  assert serve.address(access.make_access('127.0.0.1', ''), 80) == 'http://127.0.0.1:80/'
  assert serve.address(access.make_access('::1', TOKEN), 8) == f'http://[::1]:8/?token={TOKEN}'
  who = access.make_access('0.0.0.0', TOKEN)
  found = serve.address(who, 8)
  assert re.fullmatch(rf'http://[^/]+:8/\?token={TOKEN}', found) and '0.0.0.0' not in found
  assert who.refusal('GET', {'host': found.split('/')[2]}, f'token={TOKEN}') is None
