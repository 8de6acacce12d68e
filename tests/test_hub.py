"""Weights by address: fetched from a server on loopback, gone on with, checked, used offline."""

import hashlib
import http.server
import socket
import threading

import pytest

from vit_jax import convert, weights
from vit_jax.runtime import fetch


class Hub(http.server.BaseHTTPRequestHandler):
  """Answers /OWNER/NAME/resolve/REVISION/FILE with a redirection, as the real one does."""

  files, asked, break_at, told = {}, [], None, {}

  def do_GET(self):
    name = self.path.rsplit('/', 1)[1]
    Hub.asked.append(self.path)
    if name not in self.files:
      self.send_error(404)
      return
    content = self.files[name]
    digest = self.told.get(name) or hashlib.sha256(content).hexdigest()
    if '/resolve/' in self.path:
      self.send_response(302)
      self.send_header('X-Linked-Etag', f'"{digest}"')
      self.send_header('Location', f'/store/{name}')
      self.end_headers()
      return
    start = int((self.headers.get('Range') or 'bytes=0-')[6:].rstrip('-'))
    self.send_response(206 if start else 200)
    self.send_header('Content-Length', str(len(content) - start))
    self.end_headers()
    stop, Hub.break_at = self.break_at, None
    self.wfile.write(content[start:stop])

  def log_message(self, *_):
    pass


@pytest.fixture
def hub(trained, tmp_path, monkeypatch):
  convert.convert(str(trained), tmp_path / 'served', 'huggingface', False)
  Hub.files = {path.name: path.read_bytes() for path in (tmp_path / 'served').iterdir()}
  Hub.asked, Hub.break_at, Hub.told = [], None, {}
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{running.server_port}'
    monkeypatch.setenv('HF_ENDPOINT', address)
    yield address
    running.shutdown()


def test_by_name_and_then_offline(hub, trained):
  params, passport = weights.load('hf://someone/digits')
  assert passport.origin['family'] == 'huggingface'
  assert (params['head']['kernel'] == weights.load(trained)[0]['head']['kernel']).all()
  count = len(Hub.asked)
  Hub.files = {}  # The hub is gone.
  weights.load('hf://someone/digits')
  assert len(Hub.asked) == count


def test_a_broken_download_goes_on(hub):
  Hub.break_at = 100
  with pytest.raises(ValueError, match=r'config\.json: .* is kept'):
    weights.load('hf://someone/digits')
  weights.load('hf://someone/digits@v2')
  weights.load('hf://someone/digits')


@pytest.mark.parametrize(
  'answer',
  [b'', b'no HTTP\r\n\r\n', b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\na'],
)
def test_an_answer_that_is_none_is_told(tmp_path, monkeypatch, answer):
  """Python's own errors of such answers are of another kind than of a connection."""
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path))
  with socket.create_server(('127.0.0.1', 0)) as server:

    def speak():
      talk, _ = server.accept()
      with talk:
        talk.recv(4096)
        talk.sendall(answer)

    threading.Thread(target=speak, daemon=True).start()
    address = f'http://127.0.0.1:{server.getsockname()[1]}/w.npz'
    with pytest.raises(ValueError, match=r'w\.npz: .* is kept, try again'):
      fetch.download(address, 'ab' * 32)


@pytest.mark.parametrize('address', ['http://a b/w.npz', 'http://127.0.0.1:port/w.npz'])
def test_an_address_that_is_none_is_told(tmp_path, monkeypatch, address):
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path))
  with pytest.raises(ValueError, match='is kept, try again'):
    fetch.download(address, 'ab' * 32)


def test_another_file_than_the_hub_tells(hub):
  Hub.told = {'model.safetensors': 'ab' * 32}
  with pytest.raises(ValueError, match=r'model\.safetensors has SHA-256'):
    weights.load('hf://someone/digits')


def test_a_model_that_is_not_there(hub):
  Hub.files = {}
  with pytest.raises(ValueError, match=r'hf://no/model: config\.json: HTTP Error 404'):
    weights.load('hf://no/model')


def test_a_file_by_address(hub):
  content = Hub.files['model.safetensors']
  right = hashlib.sha256(content).hexdigest()
  Hub.files = {f'w-{right[:8]}.safetensors': content}
  address = f'{hub}/w-{right[:8]}.safetensors'
  assert fetch.local(address).read_bytes() == content  # The name carries the hash, as torch's do.
  Hub.files = {}
  assert fetch.local(address).read_bytes() == content
  with pytest.raises(ValueError, match='unknown torchvision model'):
    fetch.local('torchvision://vit_b_17')
  with pytest.raises(FileNotFoundError, match='nowhere does not exist'):
    fetch.local('nowhere')
